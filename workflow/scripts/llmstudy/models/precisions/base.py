"""What a precision is: a name, what it stores, where it runs, and how it loads a model."""

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
    """What a precision needs to load a model.

    weights          where the parameters come from (files or a seed)
    device           ``cpu`` or ``cuda``
    attention        transformers' name of the attention implementation: ``eager``, ``sdpa``, ``flash_attention_2``
    calibration_ids  int64 [1, n] token ids of real text on the CPU, for precisions that look at activations
    device_map       ``auto`` to spread the model over all visible GPUs, else None
    """

    weights: Weights
    device: str
    attention: str
    calibration_ids: torch.Tensor | None = None
    device_map: str | None = None


@dataclass(frozen=True)
class Precision:
    """One way to store and multiply the linear weights.

    weight_bits    stored bits per linear weight without scales: sizes jobs before anything is loaded
    compute_dtype  dtype of activations and of everything that is not a linear: ``float32``, ``float16``, ``bfloat16``
    load           LoadRequest → model in eval mode on its device(s); raises Unsupported with a reason
    calibrated     whether ``load`` needs ``calibration_ids``
    packages       what ``load`` imports beyond torch and transformers: imported before its time and memory count
    """

    name: str
    title: str
    weight_bits: float
    compute_dtype: str
    load: Callable[[LoadRequest], PreTrainedModel]
    devices: tuple[str, ...] = ("cpu", "cuda")
    calibrated: bool = False
    packages: tuple[str, ...] = ()
