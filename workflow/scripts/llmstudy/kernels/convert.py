"""Triton: 8-bit weights to floating-point numbers and back, and the activation function that several kernels share."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def to_float32(q, STORED: tl.constexpr, FAST: tl.constexpr):
    """Convert weights to float32. For int8 the conversion unit of an SM is slower than memory here, so FAST builds the
    number from bits: byte + 128 as the low mantissa byte of 2²³, minus 2²³ + 128."""
    if FAST and STORED == "int8":
        converted = tl.inline_asm_elementwise(
            asm="""{
                .reg .b32 u, t;
                .reg .f32 f;
                xor.b32 u, $4, 0x80808080;
                prmt.b32 t, u, 0x4B000000, 0x7440; mov.b32 f, t; sub.f32 $0, f, 0f4B000080;
                prmt.b32 t, u, 0x4B000000, 0x7441; mov.b32 f, t; sub.f32 $1, f, 0f4B000080;
                prmt.b32 t, u, 0x4B000000, 0x7442; mov.b32 f, t; sub.f32 $2, f, 0f4B000080;
                prmt.b32 t, u, 0x4B000000, 0x7443; mov.b32 f, t; sub.f32 $3, f, 0f4B000080;
            }""",
            constraints="=f,=f,=f,=f,r",
            args=[q],
            dtype=tl.float32,
            is_pure=True,
            pack=4,
        )
    else:
        converted = _number(q, STORED).to(tl.float32)
    return converted


@triton.jit
def _number(q, STORED: tl.constexpr):
    """Return weights as numbers: those in e4m3 are loaded as bytes."""
    number = q
    if STORED == "fp8":
        number = q.to(tl.float8e4nv, bitcast=True)
    return number


@triton.jit
def to_operand(q, STORED: tl.constexpr, dtype: tl.constexpr, FAST: tl.constexpr):
    """Convert weights to the dtype of a tensor-core operand, exactly. For int8 to fp16 FAST puts byte + 128 under the
    exponent of 1024; for all others the compiler's sequence is as short."""
    if FAST and STORED == "int8" and dtype == tl.float16:
        converted = tl.inline_asm_elementwise(
            asm="""{
                .reg .b32 u, lo, hi, bias;
                xor.b32 u, $2, 0x80808080;
                mov.b32 bias, 0x64806480;
                prmt.b32 lo, u, 0x64646464, 0x4140;
                prmt.b32 hi, u, 0x64646464, 0x4342;
                sub.f16x2 $0, lo, bias;
                sub.f16x2 $1, hi, bias;
            }""",
            constraints="=r,=r,r",
            args=[q],
            dtype=tl.float16,
            is_pure=True,
            pack=4,
        )
    else:
        converted = _number(q, STORED).to(dtype)
    return converted


@triton.jit
def int4_operands(packed, scale, dtype: tl.constexpr):
    """Return the weights in the low and in the high halves of bytes, times ``scale`` [..., 1], in ``dtype``."""
    low = ((packed & 15) - 8).to(dtype) * scale.to(dtype)
    high = (((packed >> 4) & 15) - 8).to(dtype) * scale.to(dtype)
    return low, high


@triton.jit
def dequantize_int4_kernel(
    q_ptr, scale_ptr, out_ptr, n_out, K: tl.constexpr, GROUP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    """Store packed weights [n_out, K / 2] times their scales in the output's dtype; BLOCK_K counts bytes."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    byte = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    mask = (rows < n_out)[:, None] & (byte < K // 2)[None, :]
    k = byte // 16 * 32 + byte % 16
    row = rows.to(tl.int64)[:, None]
    packed = tl.load(q_ptr + row * (K // 2) + byte[None, :], mask=mask, other=0)
    scale = tl.load(scale_ptr + row * (K // GROUP) + (k // GROUP)[None, :], mask=mask, other=0)
    low, high = int4_operands(packed, scale, out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * K + k[None, :], low, mask=mask)
    tl.store(out_ptr + row * K + k[None, :] + 16, high, mask=mask)


@triton.jit
def silu(x):
    return x / (1.0 + tl.exp(-x))


@triton.jit
def dequantize_kernel(
    q_ptr,
    scale_ptr,
    out_ptr,
    n_out,
    K: tl.constexpr,
    STORED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Store q [n_out, K] times the scale of each row in the output's dtype; grid (row blocks, column blocks)."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    at = rows.to(tl.int64)[:, None] * K + k[None, :]
    mask = (rows < n_out)[:, None] & (k < K)[None, :]
    scale = tl.load(scale_ptr + rows, mask=rows < n_out, other=0)
    value = to_float32(tl.load(q_ptr + at, mask=mask, other=0), STORED, False) * scale[:, None]
    tl.store(out_ptr + at, value.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def quantize_tokens_kernel(x_ptr, q_ptr, scale_ptr, K: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr):
    """Store row ``program_id`` of x [m, K] over its scale in the dtype of q, and the scale: absmax ÷ LARGEST."""
    row = tl.program_id(0)
    k = tl.arange(0, BLOCK)
    at = row.to(tl.int64) * K + k
    x = tl.load(x_ptr + at, mask=k < K, other=0).to(tl.float32)
    # A number that is not finite makes the scale NaN or infinite, and with it every output of the row.
    peak = tl.reduce(tl.abs(x), 0, larger)
    scale = larger(peak, 1.1754943508222875e-38) / LARGEST
    q = tl.clamp(tl.div_rn(x, tl.zeros_like(x) + scale), -LARGEST, LARGEST)
    tl.store(q_ptr + at, q.to(q_ptr.dtype.element_ty), mask=k < K)
    tl.store(scale_ptr + row, scale)


@triton.jit
def larger(a, b):
    """Return the maximum, or NaN if one is NaN."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
