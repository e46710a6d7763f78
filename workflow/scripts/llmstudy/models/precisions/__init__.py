"""The registry of precisions. A new one is one module of this package and one line in ``MODULES``.

The workflow reads the registry while it is parsed: modules of precisions import torch and their libraries in ``load``.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

from llmstudy.errors import StudyError
from llmstudy.models.precisions.base import LoadRequest, Precision

# Name → module with a mapping ``PRECISIONS`` from name to ``Precision``, in the order of tables and figures.
# The digest of a measurement's code follows ``module_of`` its precision alone: a new line here changes no record.
MODULES = {
    "fp32": "dense",
    "bf16": "dense",
    "fp16": "dense",
    "llm-int8": "llm_int8",
    "int8-fused": "int8",
    "int8-fused-outlier": "int8",
    "int8-w8a8": "int8",
    "nf4": "four_bit",
    "fp4": "four_bit",
}
# Prefix of a family's names → module with a function ``member`` from the rest of a name to its ``Precision``.
FAMILIES = {"llm-int8-t": "llm_int8"}


def names() -> tuple[str, ...]:
    """Return all names but those of families, in the order of tables and figures."""
    return tuple(MODULES)


def get(name: str) -> Precision:
    """Return the precision called ``name``, such as ``bf16`` or, of a family, ``llm-int8-t2.5``.

    Raises:
        StudyError: there is none; or ``name`` is another spelling (``llm-int8-t2.50``) of a name, which the line gives.
    """
    module = import_module(f"{__name__}.{module_of(name)}")
    return module.PRECISIONS[name] if name in MODULES else module.member(name.removeprefix(_prefix(name)))


def check(name: str) -> None:
    """Raise ``StudyError`` if no precision is called ``name``; see ``get``."""
    get(name)


def module_of(name: str) -> str:
    """Return the module of this package that defines a precision, such as ``llm_int8``; raises as ``get`` does."""
    if name in MODULES:
        return MODULES[name]
    if prefix := _prefix(name):
        return FAMILIES[prefix]
    allowed = ", ".join([*MODULES, *(f"{family}<x>" for family in FAMILIES)])
    raise StudyError(f"precision {name!r}: not known; allowed: {allowed}")


def in_order(given: Iterable[str]) -> list[str]:
    """Return each name once: in the order of the registry, LLM.int8() by threshold, unknown names last."""
    return sorted(set(given), key=_rank)


def _prefix(name: str) -> str:
    return next((prefix for prefix in FAMILIES if name.startswith(prefix)), "")


def _rank(name: str) -> tuple:
    try:
        module, threshold = module_of(name), get(name).threshold
    except StudyError:
        return len(MODULES), 0, 0, name
    place = list(MODULES).index(name) if name in MODULES else list(MODULES.values()).index(module)
    return place, name not in MODULES, threshold or 0, name


__all__ = ["LoadRequest", "Precision", "check", "get", "in_order", "module_of", "names"]
