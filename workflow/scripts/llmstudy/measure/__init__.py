"""Measurements: one module per kind of record, each with ``measure(session) -> samples``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from llmstudy.errors import StudyError

if TYPE_CHECKING:
    from llmstudy.measure.session import Session

# kind of record → module of this package
MODULES = {
    "latency": "latency",
    "memory": "memory",
    "quality": "quality",
    "reference": "reference",
    "samples": "generation",
    "outliers": "outliers",
    "sweep": "sweep",
    "sensitivity": "sensitivity",
    "invariance": "invariance",
    "profile": "profile",
    "attention": "attention_sweep",
    "tasks": "tasks",
    "capacity": "capacity",
}


def measure(session: Session) -> dict:
    """Run the measurement that the session's job asks for."""
    kind = session.job["identity"]["kind"]
    if kind not in MODULES:
        raise StudyError(f"kind {kind!r}: not known; allowed: {', '.join(MODULES)}")
    return import_module(f"llmstudy.measure.{MODULES[kind]}").measure(session)
