"""Measurements: one module per kind of record, each with ``measure(session) -> results``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from llmstudy.errors import StudyError
from llmstudy.runner.job import sequences

if TYPE_CHECKING:
    from llmstudy.fetch.weights import Weights
    from llmstudy.measure.session import Session


def measure(session: Session) -> dict:
    """Run the measurement that the session's job names."""
    check_context(session.job.settings, session.weights)
    return import_module(f"llmstudy.{session.job.module}").measure(session)


def check_context(settings: dict, weights: Weights) -> None:
    """Raise StudyError if a call or a window is longer than the model's context, which a config need not know.

    A model computes beyond it too, but not what it was trained for.
    """
    longest = max((sum(tokens.values()) for _, tokens in sequences(settings)), default=0)
    if longest > weights.context:
        raise StudyError(f"{longest} tokens are more than the context of model {weights.name!r}, {weights.context}")
