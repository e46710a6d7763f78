"""Quantized modules in place of ``nn.Linear``, for the library's forward and, fused, for the graph runtime."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from llmstudy.kernels.quantize import FP8, INT4, QuantizedWeight, dequantize, quantize, quantize_tokens

# Above this many rows arithmetic limits a product, and the dense product over a dequantized weight is faster.
CPU_ROWS = 64
# Up to this many rows the reading of weights limits a product, and activations keep their dtype. torch._int_mm requires
# more, and multiples of 8 (cuBLAS).
FEW_ROWS = 16
# _weight_int8pack_mm reads 16 weights at a time, past the end of a row that is no multiple of that.
PACK_COLUMNS = 16


class QuantizedLinear(nn.Module):
    """``y = x · (q * scale)ᵀ + bias`` with quantized weights [out, in] and activations in 16 or 32 bit.

    forward takes [..., in] and returns [..., out] in the dtype of its input. ``DTYPE`` is that of the weights.
    """

    DTYPE: torch.dtype

    def __init__(self, weight: QuantizedWeight, bias: torch.Tensor | None):
        super().__init__()
        self.out_features, self.in_features = weight.q.shape
        self.register_buffer("weight", weight.q)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("outlier_columns", weight.outlier_columns)
        self.register_buffer("outlier_weight", weight.outlier_weight)
        self.register_buffer("bias", bias)
        self._repeated: dict = {}  # a ``launch.Repeated`` for each number of rows and dtype

    @classmethod
    def from_weight(
        cls, weight: torch.Tensor, bias: torch.Tensor | None, outlier_columns: torch.Tensor | None = None
    ) -> QuantizedLinear:
        """Quantize a floating-point weight [out, in] on its device."""
        return cls(quantize(weight, outlier_columns, cls.DTYPE), bias)

    @classmethod
    def fuse(cls, parts: Sequence[QuantizedLinear]) -> QuantizedLinear:
        """Return one layer with the outputs of ``parts``, which share their input, side by side.

        The parts become views of the fused tensors, so that no memory is used twice.

        Raises:
            ValueError: the parts have different outlier columns.
        """
        first = parts[0]
        columns = first.outlier_columns
        if any(
            (part.outlier_columns is None) != (columns is None)
            or (columns is not None and not torch.equal(part.outlier_columns, columns))
            for part in parts
        ):
            raise ValueError("layers with different outlier columns cannot be fused")
        for part in parts:
            part._repeated.clear()  # it holds on to the weights that become views
        joined = {name: join(parts, name) for name in ("weight", "scale", "outlier_weight", "bias")}
        return cls(
            QuantizedWeight(joined["weight"], joined["scale"], columns, joined["outlier_weight"]), joined["bias"]
        )

    @property
    def quantized(self) -> QuantizedWeight:
        """The weight and its scale, without the bias."""
        return QuantizedWeight(self.weight, self.scale, self.outlier_columns, self.outlier_weight)

    @property
    def operand(self):
        """The ``LinearOperand`` of the Triton kernels."""
        from llmstudy.kernels.launch import LinearOperand

        return LinearOperand(self.weight, self.scale, self.bias, self.outlier_columns, self.outlier_weight)

    def quantizes(self, rows: int) -> bool:
        """Return whether the activations of so many rows are multiplied in 8 bits."""
        return False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features)
        if self.quantizes(rows.shape[0]):
            out = self._quantized(rows)
        elif rows.is_cuda:
            out = self._cuda(rows.contiguous())
        else:
            out = self._cpu(rows)
        return out.view(*x.shape[:-1], self.out_features)

    def _quantized(self, rows: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _cuda(self, rows: torch.Tensor) -> torch.Tensor:
        repeated = self._repeated.get((rows.shape[0], rows.dtype))
        if repeated and repeated.takes(rows):
            return repeated(rows)
        from llmstudy.kernels import launch

        if launch.fits(rows, self.operand):
            repeated = self._repeated[rows.shape[0], rows.dtype] = launch.Repeated()
            return repeated.first(rows, self.operand)
        weight = launch.dequantize(self.weight, self.scale, rows.dtype)
        if self.outlier_columns is not None:
            weight[:, self.outlier_columns] = self.outlier_weight.to(rows.dtype)
        return functional.linear(rows, weight, self.bias)

    def _cpu(self, rows: torch.Tensor) -> torch.Tensor:
        return functional.linear(rows, dequantize(self.quantized, rows.dtype), self.bias)


class Int8Linear(QuantizedLinear):
    """Int8 weights; few rows take PyTorch's packed product on a CPU."""

    DTYPE = torch.int8

    def _cpu(self, rows: torch.Tensor) -> torch.Tensor:
        if rows.shape[0] > CPU_ROWS or self.in_features % PACK_COLUMNS:
            return super()._cpu(rows)
        out = torch.ops.aten._weight_int8pack_mm(rows.contiguous(), self.weight, self._scale_in(rows.dtype))
        if self.outlier_columns is not None:
            out += functional.linear(rows[:, self.outlier_columns], self.outlier_weight)
        return out if self.bias is None else out.add_(self.bias)

    def _scale_in(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the scale in the dtype of the activations, which the packed product requires; converted once."""
        if getattr(self, "_scale", None) is None or self._scale.dtype != dtype:
            self._scale = self.scale.to(dtype)
        return self._scale


class W8A8Linear(Int8Linear):
    """Int8 weights and, for more than 16 rows, activations quantized to int8 with one absmax scale per token.

    With few rows the reading of weights is the limit, and int8 activations would save nothing: they keep their dtype.
    """

    def quantizes(self, rows: int) -> bool:
        return rows > FEW_ROWS and self.in_features % 8 == 0 and self.out_features % 8 == 0

    def _quantized(self, rows: torch.Tensor) -> torch.Tensor:
        q, scale = quantize_tokens(rows, torch.int8)
        out = (torch._int_mm(q, self.weight.t()) * scale * self.scale).to(rows.dtype)
        return out if self.bias is None else out.add_(self.bias)


class Fp8WeightLinear(QuantizedLinear):
    """E4m3 weights, activations as they are."""

    DTYPE = FP8


class Fp8Linear(Fp8WeightLinear):
    """E4m3 weights and, for more than 16 rows, activations quantized to e4m3 with one absmax scale per token.

    Few rows keep their dtype for the reason that ``W8A8Linear`` has. On a CPU, and for sizes that the tensor cores do
    not take, the same 8-bit numbers are multiplied and added in float32.
    """

    def quantizes(self, rows: int) -> bool:
        return rows > FEW_ROWS

    def _quantized(self, rows: torch.Tensor) -> torch.Tensor:
        if not rows.is_cuda or rows.dtype != torch.bfloat16 or self.in_features % 16 or self.out_features % 16:
            q, scale = quantize_tokens(rows, FP8)
            out = functional.linear(q.float(), self.weight.float()).mul_(scale).mul_(self.scale).to(rows.dtype)
        else:
            from llmstudy.kernels import launch

            q, scale = launch.quantize_tokens(rows.contiguous())
            out = torch._scaled_mm(
                q, self.weight.t(), scale, self.scale[None, :], out_dtype=rows.dtype, use_fast_accum=True
            )
        return out if self.bias is None else out.add_(self.bias)


class Int4Linear(QuantizedLinear):
    """Int4 weights in groups of inputs; see ``quantize.group_of``."""

    DTYPE = INT4

    def __init__(self, weight: QuantizedWeight, bias: torch.Tensor | None):
        super().__init__(weight, bias)
        self.in_features *= 2  # a byte holds two


def join(parts: Sequence[nn.Module], name: str) -> torch.Tensor | None:
    """Return the tensors ``name`` of all parts joined along the outputs; those of several parts become views of it."""
    tensors = [getattr(part, name) for part in parts]
    if tensors[0] is None:
        return None
    if len(tensors) == 1:
        return tensors[0].detach()
    joined = torch.cat([tensor.detach() for tensor in tensors])
    for tensor, view in zip(tensors, joined.split([tensor.shape[0] for tensor in tensors]), strict=True):
        tensor.data = view
    return joined
