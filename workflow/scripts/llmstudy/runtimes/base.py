"""What every runtime returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PrepareInfo:
    """compile_s: seconds spent on allocation, compilation and capture before the first call; 0 if there was none."""

    compile_s: float = 0.0


@dataclass(frozen=True)
class Timeline:
    """One greedy generation.

    tokens   int64 [batch, new_tokens] on the CPU
    token_s  seconds from the start of the call until token i was there, ascending, length new_tokens
    """

    tokens: torch.Tensor
    token_s: list[float]


class Runtime(Protocol):
    """``Runtime(model, batch, prompt_tokens, new_tokens)``: one workload on one model."""

    def prepare(self) -> PrepareInfo:
        """Allocate, compile, capture."""

    def generate(self, input_ids: torch.Tensor) -> Timeline:
        """Greedy tokens after ``input_ids`` int64 [batch, prompt_tokens]; end-of-text does not stop it."""

    def close(self) -> None:
        """Free what ``prepare`` took."""
