"""The registry of runtimes: what drives the token loop. A new one is one module here and one line in ``MODULES``.

Nothing here imports torch: the workflow checks a config against the registry while it is parsed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from llmstudy.errors import StudyError

if TYPE_CHECKING:
    import torch

BASE = "generate"  # every runtime is compared with the reference precision under this one


@dataclass(frozen=True)
class Facts:
    """Facts about a runtime.

    Attributes:
        module: the module of this package that holds it.
        name: its class in there, a ``Runtime``.
        attention: the attention kernels that it can take; empty for all. A runtime with an attention of its own is
            labelled with the kernel that it is compared under.
        own_cache: whether it keeps a KV cache of its own instead of the library's.
        whole_cache: whether that keeps every token of a layer whose attention sees a window alone.
    """

    module: str
    name: str
    attention: tuple[str, ...] = ()
    own_cache: bool = False
    whole_cache: bool = False


MODULES = {
    "generate": Facts("generate", "GenerateRuntime"),
    "compile": Facts("compile", "CompileRuntime", attention=("sdpa",), own_cache=True),
    "graph": Facts("graph", "GraphRuntime", attention=("sdpa",), own_cache=True, whole_cache=True),
}


@dataclass(frozen=True)
class PrepareInfo:
    """compile_s: seconds of allocation, compilation and capture before the first call; 0 if there was none."""

    compile_s: float = 0.0


@dataclass(frozen=True)
class Timeline:
    """One greedy generation.

    Attributes:
        tokens: int64 [batch, new_tokens] on the CPU.
        token_s: seconds from the start of the call until each token was there, ascending, length new_tokens.
    """

    tokens: torch.Tensor
    token_s: list[float]


class Runtime(Protocol):
    """``Runtime(model, batch, prompt_tokens, new_tokens)``: one workload on one model, a transformers causal LM."""

    def prepare(self) -> PrepareInfo:
        """Allocate, compile and capture; raise ``Unsupported`` where the runtime cannot run the model."""

    def generate(self, input_ids: torch.Tensor) -> Timeline:
        """Generate after ``input_ids``, int64 [batch, prompt_tokens]; an end-of-text token does not stop it."""

    def score(self, input_ids: torch.Tensor, tokens: torch.Tensor, take: Callable[[int, torch.Tensor], None]) -> None:
        """Generate after ``input_ids``, but ``tokens`` [batch, new_tokens], through the same steps as ``generate``.

        ``take(number, logits)`` is called for each new token in order with the logits [batch, vocabulary] that it would
        be taken from; the next step overwrites them. Those of number 0 come from the prompt's pass.
        """

    def close(self) -> None:
        """Free what ``prepare`` allocated."""


def facts(name: str) -> Facts:
    """Return the facts about the runtime ``name``; raise ``StudyError`` if there is none."""
    if name not in MODULES:
        raise StudyError(f"runtime {name!r}: not known; allowed: {', '.join(MODULES)}")
    return MODULES[name]


def get(name: str) -> type[Runtime]:
    """Return the class of the runtime ``name``; raise ``StudyError`` if there is none."""
    entry = facts(name)
    return getattr(import_module(f"{__name__}.{entry.module}"), entry.name)


def module_of(name: str) -> str:
    """Return the module below ``llmstudy`` that holds a runtime."""
    return f"runtimes.{facts(name).module}"


def kernels_of(name: str, attention: Sequence[str]) -> list[str]:
    """Return those of a study's attention kernels that a runtime is measured under."""
    able = facts(name).attention
    return [kernel for kernel in attention if not able or kernel in able]
