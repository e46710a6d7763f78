"""The digest of the code that a step runs through, so that a change of it reruns that step and no other.

Snakemake sees a script, not what the script imports. Imports are followed in the source text, without importing: the
workflow is parsed on machines that have no torch. The digest is of syntax trees without docstrings: a comment, a
docstring or a line break changes no number and makes no record stale.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

PACKAGE = "llmstudy"
ROOT = Path(__file__).resolve().parent
# A registry lists names; a step's digest takes the module of its name. What is added to a registry reruns nothing.
REGISTRIES = ("MODULES", "CHOICES")


@cache
def digest(*modules: str) -> str:
    """Return 16 hexadecimal digits of the code of ``modules`` (``measure.panel``) and of all that they import here."""
    total = hashlib.sha256()
    for path in files(*modules):
        total.update(f"{path.relative_to(ROOT)}:{_of_file(path)}\n".encode())
    return total.hexdigest()[:16]


def files(*modules: str) -> list[Path]:
    """Return the files of ``modules`` and of all that they import from this library, packages included, sorted."""
    seen: set[Path] = set()
    waiting = [path for module in modules for path in _paths(f"{PACKAGE}.{module}")]
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting += _imported(path)
    return sorted(seen)


def _paths(module: str) -> list[Path]:
    """Return what importing a dotted name runs: the packages that it lies in, from the outside in, and its own file."""
    parts = module.split(".")[1:]
    packages = [ROOT.joinpath(*parts[:length]) / "__init__.py" for length in range(len(parts))]
    path = ROOT.joinpath(*parts)
    return [*packages, path / "__init__.py" if path.is_dir() else path.with_suffix(".py")]


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _imported(path: Path) -> tuple[Path, ...]:
    files = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # ``from package import name``: name may be a module or something that the package's __init__ defines.
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        ours = (path for name in names if f"{name}.".startswith(f"{PACKAGE}.") for path in _paths(name))
        files.update(path for path in ours if path.exists())
    return tuple(files)


@cache
def _of_file(path: Path) -> str:
    tree = _tree(path)
    tree.body = [node for node in tree.body if not _is_registry(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[:1]
            if first and isinstance(first[0], ast.Expr) and isinstance(first[0].value, ast.Constant):
                node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_registry(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and any(
        isinstance(target, ast.Name) and target.id in REGISTRIES for target in node.targets
    )
