"""Runtimes: how a token step is launched. One line in ``MODULES`` and one module each."""

from importlib import import_module

from llmstudy.errors import StudyError

# name → (module of this package, class); names only, so that a config can be validated without importing torch.
MODULES = {
    "generate": ("generate", "GenerateRuntime"),
    "graph": ("graph", "GraphRuntime"),
}


def get(name: str) -> type:
    """The runtime class called ``name``; raises StudyError if there is none."""
    if name not in MODULES:
        raise StudyError(f"runtime {name!r}: not known; allowed: {', '.join(MODULES)}")
    module, attribute = MODULES[name]
    return getattr(import_module(f"llmstudy.runtimes.{module}"), attribute)
