"""Precisions: how the linear weights are stored and multiplied. One line in ``MODULES`` and one module each."""

from importlib import import_module

from llmstudy.errors import StudyError
from llmstudy.models.precisions.base import LoadRequest, Precision

# name → module of this package that holds it. Names only, so that the workflow can validate a config, and list the
# one file that a measurement depends on, without importing torch.
MODULES = {
    "fp32": "dense",
    "fp16": "dense",
    "bf16": "dense",
    "llm-int8": "llm_int8",
    "llm-int8-t0": "llm_int8",
    "nf4": "four_bit",
    "fp4": "four_bit",
    "int8-fused": "int8_fused",
    "int8-fused-outlier": "int8_fused_outlier",
    "int8-w8a8": "int8_w8a8",
}


def get(name: str) -> Precision:
    """The precision called ``name``; raises StudyError if there is none."""
    if name not in MODULES:
        raise StudyError(f"precision {name!r}: not known; allowed: {', '.join(MODULES)}")
    module = import_module(f"llmstudy.models.precisions.{MODULES[name]}")
    return module.PRECISIONS[name]


__all__ = ["MODULES", "LoadRequest", "Precision", "get"]
