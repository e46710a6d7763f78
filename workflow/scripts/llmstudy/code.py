"""Which files of this library a step depends on, so that a change in one reruns those steps and no others.

Snakemake sees a script, not what the script imports. The imports are followed in the source text, without importing:
the workflow is parsed on machines that have no torch.
"""

from __future__ import annotations

import ast
import os
from functools import cache
from pathlib import Path

PACKAGE = "llmstudy"
ROOT = Path(__file__).resolve().parent


def files(*modules: str) -> list[str]:
    """Paths, relative to the working folder, of the given modules (``measure.latency``) and of all that they import.

    ``__init__`` files are followed but not listed: those of the registries change whenever something is added.
    """
    seen: set[Path] = set()
    waiting = [_path(f"{PACKAGE}.{module}") for module in modules]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        waiting += _imported(path)
    return sorted(os.path.relpath(path) for path in seen if path.name != "__init__.py")


def _path(module: str) -> Path:
    """The file of a dotted module name."""
    path = ROOT.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _imported(path: Path) -> tuple[Path, ...]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # ``from package import name``: name may be a module or something that the package's __init__ defines.
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        ours = (_path(name) for name in names if name == PACKAGE or name.startswith(f"{PACKAGE}."))
        found.update(candidate for candidate in ours if candidate.exists())
    return tuple(found)
