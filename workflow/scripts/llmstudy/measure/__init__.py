"""Measurements: each kind of record has a module here with ``measure(session) -> results`` and its own ``Settings``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from llmstudy.errors import StudyError
from llmstudy.runner.job import sequences

if TYPE_CHECKING:
    from llmstudy.measure.session import Session


def measure(session: Session) -> dict:
    """Return the results of the session's job. Raise StudyError if a sequence is longer than the model's context, which
    the config need not know. A model computes beyond it too, but not what it was trained for."""
    for key, terms in sequences(session.job.settings):
        tokens, context = sum(terms.values()), session.weights.context
        if tokens > context:
            raise StudyError(
                f"{key}: {tokens} tokens are more than the context of model {session.weights.name!r}, {context}"
            )
    return import_module(f"llmstudy.{session.job.module}").measure(session)
