"""Absmax quantization of the weight of a linear layer to int8 or fp8 (e4m3), one scale per output channel.

Int8 as the weight half of LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339, section 2.1); e4m3 has four bits of
exponent and three of mantissa, 448 is its largest number (Micikevicius et al. 2022, arXiv:2209.05433).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

FP8 = torch.float8_e4m3fn
# The largest number that a stored weight has. Int8 is symmetric: -128 stays unused, so that -w quantizes to -q.
LARGEST = {torch.int8: 127, FP8: 448}
SLICE_ROWS = 1024


@dataclass(frozen=True)
class QuantizedWeight:
    """``weight ≈ q * scale[:, None]``, and columns that stay in 16 bits.

    Attributes:
        q: int8 or e4m3 [out, in]; zero in the outlier columns.
        scale: float32 [out], every value exact in bfloat16.
        outlier_columns: int64 [c], ascending; None without outliers.
        outlier_weight: [out, c] in the dtype of the weight; None without outliers.
    """

    q: torch.Tensor
    scale: torch.Tensor
    outlier_columns: torch.Tensor | None = None
    outlier_weight: torch.Tensor | None = None


def quantize(
    weight: torch.Tensor, outlier_columns: torch.Tensor | None = None, dtype: torch.dtype = torch.int8
) -> QuantizedWeight:
    """Quantize a floating-point weight [out, in] to ``dtype``, except for its ``outlier_columns``, int64 [c].

    The scale is rounded to bfloat16 *before* the weight is divided by it. That moves it by at most 2⁻⁹, so the largest
    quotient is 127.25 of int8 and |weight - q * scale| <= scale / 2 still holds everywhere, while every backend (some
    take the scale in the activations' dtype) multiplies by the same number.
    """
    kept = None
    if outlier_columns is not None and outlier_columns.numel():
        outlier_columns = outlier_columns.to(weight.device)
        kept = weight[:, outlier_columns].contiguous()
        weight = weight.index_fill(1, outlier_columns, 0)
    largest = LARGEST[dtype]
    low, high = weight.aminmax(dim=1)  # no copy of the weight, unlike abs()
    scale = torch.maximum(-low, high).float().div(largest).to(torch.bfloat16).float()
    divisor = torch.where(scale > 0, scale, 1.0)
    # In slices of rows: the float32 copy of a whole 70B-sized weight would be larger than the 16-bit layer itself.
    q = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    for first in range(0, weight.shape[0], SLICE_ROWS):
        part = slice(first, first + SLICE_ROWS)
        quotient = weight[part].float() / divisor[part, None]
        if dtype == torch.int8:
            quotient.round_()
        q[part] = quotient.clamp_(-largest, largest).to(dtype)
    return QuantizedWeight(q, scale, outlier_columns if kept is not None else None, kept)


def dequantize(weight: QuantizedWeight, dtype: torch.dtype) -> torch.Tensor:
    """Return the weight [out, in] with its rounding errors, outlier columns included."""
    scale = weight.scale.to(dtype)[:, None]
    # int8 × float promotes: one kernel, no copy in between
    full = weight.q * scale if weight.q.dtype == torch.int8 else weight.q.to(dtype).mul_(scale)
    if weight.outlier_columns is not None:
        full[:, weight.outlier_columns] = weight.outlier_weight.to(dtype)
    return full


def quantize_tokens(rows: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows [m, in] of activations in ``dtype`` and the scale of each, float32 [m, 1]: its absmax ÷ the largest
    number of ``dtype``."""
    largest = LARGEST[dtype]
    scale = rows.abs().amax(dim=1, keepdim=True).float().clamp_(min=torch.finfo(torch.float32).tiny) / largest
    quotient = rows / scale  # float32
    if dtype == torch.int8:
        quotient.round_()
    return quotient.clamp_(-largest, largest).to(dtype), scale
