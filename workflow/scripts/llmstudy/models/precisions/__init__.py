"""The registry of precisions. A new one is one module of this package and one line in ``MODULES``.

The workflow reads the registry while it is parsed: modules of precisions import torch and their libraries in ``load``.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

from llmstudy.errors import StudyError
from llmstudy.models.precisions.base import LoadRequest, Precision

# Name → module with a mapping ``PRECISIONS`` from name to ``Precision``, in the order of tables and figures. A name
# with <x> is a family's, whose module has a function ``member`` from the text in the place of <x> to its ``Precision``.
MODULES = {
    "fp32": "dense",
    "bf16": "dense",
    "fp16": "dense",
    "llm-int8": "llm_int8",
    "llm-int8-t<x>": "llm_int8",
    "int8-fused": "int8",
    "int8-fused-outlier": "int8",
    "int8-w8a8": "int8",
    "fp8": "fp8",
    "fp8-weight": "fp8",
    "int4-fused": "int4",
    "int4-fused-rtn": "int4",
    "nf4": "four_bit",
    "fp4": "four_bit",
    "as-published": "published",
    "as-published:<x>": "published",
}


def names() -> tuple[str, ...]:
    """Return all names but those of families, in the order of tables and figures."""
    return tuple(name for name in MODULES if "<" not in name)


def get(name: str) -> Precision:
    """Return the precision called ``name``, such as ``bf16`` or, of a family, ``llm-int8-t2.5``.

    Raises:
        StudyError: there is none; or ``name`` is another spelling (``llm-int8-t2.50``) of a name, which the line gives.
    """
    entry = _entry(name)
    module = import_module(f"{__name__}.{MODULES[entry]}")
    prefix, family, _ = entry.partition("<")
    return module.member(name.removeprefix(prefix)) if family else module.PRECISIONS[name]


def check(name: str) -> None:
    """Raise ``StudyError`` if no precision is called ``name``; see ``get``."""
    get(name)


def module_of(name: str) -> str:
    """Return the module below ``llmstudy`` that defines a precision; raise ``StudyError`` if none can."""
    return f"models.precisions.{MODULES[_entry(name)]}"


def in_order(given: Iterable[str]) -> list[str]:
    """Return each name once: in the order of the registry, a family by threshold, unknown names last."""
    return sorted(set(given), key=_rank)


def _entry(name: str) -> str:
    """Return the key of ``MODULES`` that covers a name."""
    if name in names():
        return name
    for entry in MODULES:
        if "<" in entry and name.startswith(entry.partition("<")[0]):
            return entry
    raise StudyError(f"precision {name!r}: not known; allowed: {', '.join(MODULES)}")


def _rank(name: str) -> tuple:
    try:
        return list(MODULES).index(_entry(name)), get(name).threshold or 0, name
    except StudyError:
        return len(MODULES), 0, name


__all__ = ["LoadRequest", "Precision", "check", "get", "in_order", "module_of", "names"]
