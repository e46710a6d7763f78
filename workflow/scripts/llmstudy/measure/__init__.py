"""Measurements: one module per kind of record, each with ``measure(session) -> results``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from llmstudy.errors import StudyError

if TYPE_CHECKING:
    from llmstudy.fetch.weights import Weights
    from llmstudy.measure.session import Session

# kind of record → module of this package
MODULES = {
    "speed": "speed",
    "memory": "memory",
    "quality": "quality",
    "reference": "reference",
    "results": "generations",
    "outliers": "diagnostics.outliers",
    "sweep": "sweep",
    "sensitivity": "diagnostics.sensitivity",
    "invariance": "diagnostics.invariance",
    "profile": "diagnostics.profile",
    "attention": "diagnostics.attention",
    "tasks": "diagnostics.tasks",
    "capacity": "diagnostics.capacity",
}


def measure(session: Session) -> dict:
    """Run the measurement that the session's job asks for."""
    kind = session.job["identity"]["kind"]
    if kind not in MODULES:
        raise StudyError(f"kind {kind!r}: not known; allowed: {', '.join(MODULES)}")
    check_context(session.settings, session.weights)
    return import_module(f"llmstudy.measure.{MODULES[kind]}").measure(session)


def check_context(settings: dict, weights: Weights) -> None:
    """Raise StudyError if a call or a window is longer than the model's context, which a config need not know.

    A model computes beyond it too, but not what it was trained for.
    """
    calls = [*settings.get("workloads", []), *([settings["workload"]] if "workload" in settings else [])]
    asked = [call["prompt_tokens"] + call["new_tokens"] for call in calls]
    asked += [settings.get("prompt_tokens", 0)]
    asked += [protocol["window"] for protocol in settings.get("protocols", [])]
    if max(asked) > weights.context:
        raise StudyError(f"{max(asked)} tokens are more than the context of model {weights.name!r}, {weights.context}")
