"""Batch invariance: does a prompt's result depend on what else is in the batch?

The prompt is scored alone, beside copies of itself, and beside other texts. All prompts are equally long, so there is
no padding. What differs already beside copies comes from the batch's shape, for which libraries choose other kernels;
what comes on top beside other texts comes from their content, as in LLM.int8(), which picks outlier columns over the
whole batch.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from llmstudy.measure.prompts import prompt_batch
from llmstudy.measure.session import Session

if TYPE_CHECKING:
    import torch


def measure(session: Session) -> dict:
    """``{"positions", "batches": [{"batch", "neighbours", "status", "reason", "max_abs_delta_logit", …}]}``."""
    settings = session.settings
    model, _ = session.load_model()
    largest = max(settings["batches"])
    prompts = prompt_batch(session, 1 + settings["neighbour_sets"] * (largest - 1), settings["prompt_tokens"])
    alone = logits_of_first(session, model, prompts[:1])
    results: dict = {"positions": len(alone), "batches": []}
    for batch in settings["batches"]:
        for neighbours, rows in compositions(batch, settings["neighbour_sets"]).items():
            about = {"batch": batch, "neighbours": neighbours}
            session.piece(results, "batches", about, partial(measure_batch, session, model, alone, prompts[rows]))
    return results


def measure_batch(session: Session, model, alone, prompts) -> dict:
    """How far the first prompt's logits in this batch lie from those of ``alone``."""
    return compare(alone, logits_of_first(session, model, prompts))


def compositions(batch: int, sets: int) -> dict[str, list[int]]:
    """Which prompts make up a batch, by the name of its neighbours; prompt 0 is the one looked at."""
    found = {"copies": [0] * batch}
    for number in range(sets):
        first = 1 + number * (batch - 1)
        found[f"others {number + 1}"] = [0, *range(first, first + batch - 1)]
    return found


def logits_of_first(session: Session, model, ids: torch.Tensor) -> torch.Tensor:
    """float32 [positions, vocabulary] of row 0 of ``ids`` [batch, positions]."""
    import torch

    with torch.no_grad(), session.attention_forced():
        return model(ids, use_cache=False).logits[0].float()


def compare(alone: torch.Tensor, beside: torch.Tensor) -> dict:
    """Two logit tables [positions, vocabulary] of the same tokens; FloatingPointError where they are not finite."""
    difference = (beside - alone).abs()
    if not difference.isfinite().all():
        raise FloatingPointError("logits are not finite; the precision overflows")
    return {
        "max_abs_delta_logit": float(difference.max()),
        "mean_abs_delta_logit": float(difference.mean()),
        "top1_changes": int((beside.argmax(-1) != alone.argmax(-1)).sum()),
    }
