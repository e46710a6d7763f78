"""Batch invariance: does a prompt's result depend on what else is in the batch?

The prompt is scored alone, beside copies of itself, and beside other texts. All prompts are equally long, so there is
no padding. A difference already beside copies comes from the batch's shape, for which libraries choose other kernels; a
larger one beside other texts comes from their content, as in LLM.int8(), which picks outlier columns over the whole
batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llmstudy.measure.session import Session
from llmstudy.measure.text import prompt_batch


@dataclass(frozen=True)
class Settings:
    """Tokens of a prompt, batch sizes, and how many different sets of neighbours each batch is measured with."""

    prompt_tokens: int
    batches: tuple[int, ...]
    neighbour_sets: int


def measure(session: Session) -> dict:
    """Return ``{"positions", "batches": [{"batch", "neighbours", "status", "reason", "max_abs_delta_logit",
    "mean_abs_delta_logit", "top1_changes"}]}``."""
    settings = session.settings_as(Settings)
    model, _ = session.load_model()
    neighbours = settings.neighbour_sets * (max(settings.batches) - 1)
    prompts = prompt_batch(session, 1 + neighbours, settings.prompt_tokens)
    alone = logits_of_first(session, model, prompts[:1])
    results: dict = {"positions": len(alone), "batches": []}
    for batch in settings.batches:
        for name, rows in compositions(batch, settings.neighbour_sets).items():
            with session.case(results, "batches", batch=batch, neighbours=name) as entry:
                entry |= compare(alone, logits_of_first(session, model, prompts[rows]))
    return results


def compositions(batch: int, sets: int) -> dict[str, list[int]]:
    """Return the prompts that make up a batch, by the name of its neighbours; prompt 0 is the one that is compared."""
    rows = {"copies": [0] * batch}
    for number in range(sets):
        first = 1 + number * (batch - 1)
        rows[f"others {number + 1}"] = [0, *range(first, first + batch - 1)]
    return rows


def logits_of_first(session: Session, model, ids: torch.Tensor) -> torch.Tensor:
    """Return logits float32 [positions, vocabulary] of row 0 of ``ids`` [batch, positions]."""
    with torch.no_grad(), session.attention_forced():
        return model(ids, use_cache=False).logits[0].float()


def compare(alone: torch.Tensor, beside: torch.Tensor) -> dict:
    """Return the differences of two tables of logits [positions, vocabulary] of the same tokens. Raise
    FloatingPointError if a logit is not finite."""
    difference = (beside - alone).abs()
    if not difference.isfinite().all():
        raise FloatingPointError("not finite at the logits")
    return {
        "max_abs_delta_logit": float(difference.max()),
        "mean_abs_delta_logit": float(difference.mean()),
        "top1_changes": int((beside.argmax(-1) != alone.argmax(-1)).sum()),
    }
