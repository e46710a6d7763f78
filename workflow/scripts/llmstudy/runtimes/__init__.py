"""Runtimes: what drives the token loop. One line in ``MODULES`` and one module each.

Nothing here imports torch: the workflow checks a config against the registry while it is parsed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from llmstudy.errors import StudyError

BASE = "generate"  # every runtime is compared with the reference precision under this one


@dataclass(frozen=True)
class Runtime:
    """Facts about a runtime.

    Attributes:
        module: the module of this package that holds it.
        name: the class in there.
        attention: the attention kernels that it can take; empty for all. A runtime with an attention of its own is
            labelled with the kernel that it is compared under.
        own_cache: whether it keeps a KV cache of its own instead of the library's.
    """

    module: str
    name: str
    attention: tuple[str, ...] = ()
    own_cache: bool = False


MODULES = {
    "generate": Runtime("generate", "GenerateRuntime"),
    "graph": Runtime("graph", "GraphRuntime", attention=("sdpa",), own_cache=True),
}


def facts(name: str) -> Runtime:
    """Return the facts about the runtime ``name``; raise StudyError if there is none."""
    if name not in MODULES:
        raise StudyError(f"runtime {name!r}: not known; allowed: {', '.join(MODULES)}")
    return MODULES[name]


def get(name: str) -> type:
    """Return the runtime class called ``name``; raise StudyError if there is none."""
    found = facts(name)
    return getattr(import_module(f"llmstudy.runtimes.{found.module}"), found.name)


def module_of(name: str) -> str:
    """Return the module below ``llmstudy`` that holds a runtime."""
    return f"runtimes.{facts(name).module}"


def kernels_of(name: str, attention: Sequence[str]) -> list[str]:
    """Return those of a study's attention kernels that a runtime is measured under."""
    able = facts(name).attention
    return [kernel for kernel in attention if not able or kernel in able]
