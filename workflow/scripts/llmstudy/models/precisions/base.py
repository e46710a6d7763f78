"""``Precision``: one way to store and multiply linear weights, with every fact that the study needs about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from llmstudy.fetch.weights import Weights


@dataclass(frozen=True)
class LoadRequest:
    """The needs of a precision that loads a model.

    Attributes:
        weights: where the parameters come from (files or a seed).
        device: ``cpu`` or ``cuda``.
        attention: transformers' name of the attention implementation: ``eager``, ``sdpa``, ``flash_attention_2``, ….
        calibration_ids: int64 [rows, tokens] token ids of real text on the CPU, for calibrated precisions; else None.
        device_map: ``auto`` to spread the model over all visible GPUs, else None.
    """

    weights: Weights
    device: str
    attention: str
    calibration_ids: torch.Tensor | None = None
    device_map: str | None = None


@dataclass(frozen=True)
class Precision:
    """One way to store and multiply the linear weights.

    Attributes:
        name: its name in configs, records and tables.
        title: a phrase that explains it to a reader of the report.
        family: ``dense`` (16 or 32 bits a weight, and the original whatever it is), ``int8``, ``fp8``,
            ``4-bit`` or ``published``: with what the report groups it.
        weight_bits: stored bits per linear weight without scales, which sizes jobs before anything is loaded.
        compute_dtype: dtype of activations and of all parameters that are not linear weights: ``float32``, ``float16``
            or ``bfloat16``; ``auto`` is the checkpoint's.
        load: returns the model of a ``LoadRequest`` in eval mode on its device or devices; raises ``Unsupported`` with
            a reason where that is not possible.
        color: hex color in every figure; no other precision has it. At least 4.5:1 contrast with white, for its name.
        how: what a user writes to run it: one line of Python of its library; a phrase where no library has it.
        own: whether its kernels are this project's; False for those of a library.
        devices: kinds of device that it runs on.
        calibrated: whether ``load`` needs ``calibration_ids``.
        packages: what ``load`` imports beyond torch and transformers: imported before its time and memory count.
        threshold: outlier threshold of LLM.int8(); None for all other precisions.
        checkpoint: name of the published checkpoint that it loads; empty for the model's own weights.
    """

    name: str
    title: str
    family: str
    weight_bits: float
    compute_dtype: str
    load: Callable[[LoadRequest], PreTrainedModel]
    color: str
    how: str = ""
    own: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")
    calibrated: bool = False
    packages: tuple[str, ...] = ()
    threshold: float | None = None
    checkpoint: str = ""
