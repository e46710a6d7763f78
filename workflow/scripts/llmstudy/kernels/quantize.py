"""Absmax quantization of the weight of a linear layer to int8 or fp8 (e4m3), one scale per output channel.

Int8 as the weight half of LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339, section 2.1); e4m3 has four bits of
exponent and three of mantissa, 448 is its largest number (Micikevicius et al. 2022, arXiv:2209.05433). And to int4 with
one scale for each group of inputs of an output channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llmstudy.errors import Unsupported

FP8 = torch.float8_e4m3fn
INT4 = torch.uint8  # two weights a byte
GROUPS = (128, 64, 32)  # inputs that share a scale of int4 weights: the first that divides the inputs
HALF = 16  # of the weights that lie in 16 bytes, see ``pack``
# The largest number that a stored weight has. Int8 is symmetric: -128 stays unused, so that -w quantizes to -q.
LARGEST = {torch.int8: 127, FP8: 448}
SLICE_ROWS = 1024


@dataclass(frozen=True)
class QuantizedWeight:
    """``weight ≈ q * scale[:, None]``, and columns that stay in 16 bits.

    Attributes:
        q: int8 or e4m3 [out, in], zero in the outlier columns; or int4, uint8 [out, in / 2].
        scale: float32 [out], every value exact in bfloat16; for int4 bfloat16 [out, in / group].
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

    Int4 weights are rounded to the nearest level and have no outlier columns.

    The scale is rounded to bfloat16 *before* the weight is divided by it. That moves it by at most 2⁻⁹, so the largest
    quotient is 127.25 of int8 and |weight - q * scale| <= scale / 2 still holds everywhere, while every backend (some
    take the scale in the activations' dtype) multiplies by the same number.
    """
    if dtype == INT4:
        scale = group_scale(weight.unflatten(1, (-1, group_of(weight.shape[1]))))
        return QuantizedWeight(pack(int4_levels(weight, scale)), scale)
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
    if weight.q.dtype == INT4:
        levels = unpack(weight.q).unflatten(1, (weight.scale.shape[1], -1))
        return (levels.to(dtype) * weight.scale.to(dtype)[:, :, None]).flatten(1)
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


def group_of(in_features: int) -> int:
    """Return the inputs that share a scale of int4 weights; raise ``Unsupported`` if no group divides them."""
    for group in GROUPS:
        if in_features % group == 0:
            return group
    raise Unsupported(f"int4 weights come in groups of {GROUPS[-1]} inputs or more, and {in_features} is no multiple")


def group_scale(groups: torch.Tensor) -> torch.Tensor:
    """Return the scale of groups of weights [..., group], bfloat16 [...]: 7.5 levels for the largest magnitude.

    Levels go from -8 to 7, so that the largest alone may be cut, by half a step; 7 would make every step wider.
    """
    return (groups.abs().amax(-1).float() / 7.5).to(torch.bfloat16)


def int4_levels(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the nearest levels of a weight [out, in], int8 in -8 … 7, for scales [out, in / group]."""
    divisor = torch.where(scale > 0, scale.float(), 1.0)
    quotient = weight.float().unflatten(1, (scale.shape[1], -1)) / divisor[:, :, None]
    return quotient.round_().clamp_(-8, 7).to(torch.int8).flatten(1)


def pack(levels: torch.Tensor) -> torch.Tensor:
    """Return levels int8 [out, in] in -8 … 7 as bytes [out, in / 2] of level + 8.

    16 bytes hold 32 weights: their low halves the first 16, their high halves the others. So a word of four bytes gives
    four weights that follow each other with one mask.
    """
    halves = (levels + 8).to(torch.uint8).unflatten(1, (-1, 2, HALF))
    return (halves[:, :, 0] | halves[:, :, 1] << 4).flatten(1)


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """Return the levels of ``pack``."""
    halves = packed.unflatten(1, (-1, HALF))
    return torch.stack((halves & 15, halves >> 4), dim=2).flatten(1).to(torch.int8) - 8
