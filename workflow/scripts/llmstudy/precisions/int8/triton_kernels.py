"""Triton kernels for a linear over int8 or dense weights: a matrix-vector one and a tiled one on tensor cores.

Both compute ``out = epilogue((x · Wᵀ) * scale + x[:, outliers] · Oᵀ + bias)`` with float32 accumulation, W row-major
[out, in]. Epilogues: add a residual, or SwiGLU over a weight that holds the gate rows above the up rows.

Decoding reads each weight once, so these kernels are judged by the share of the memory bandwidth that they reach. Two
things decide it: enough loads in flight, and no gap between one kernel and the next. For the second the kernels take
part in programmatic dependent launch (PDL): a kernel starts while its predecessor drains, loads weights, which no
kernel writes, and only then waits for the activations.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import cuda as tl_cuda


@triton.jit
def int8_to_float32(q, FAST: tl.constexpr):
    """int8 → float32. The conversion unit of an SM is slower than memory here, so FAST builds the number from bits:
    byte + 128 as the low mantissa byte of 2²³, minus 2²³ + 128."""
    if FAST:
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
        converted = q.to(tl.float32)
    return converted


@triton.jit
def int8_to_operand(q, dtype: tl.constexpr, FAST: tl.constexpr):
    """int8 → the dtype of a tensor-core operand, exactly. For fp16 FAST puts byte + 128 under the exponent of 1024;
    for bf16 the compiler's own sequence is already of that kind."""
    if FAST and dtype == tl.float16:
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
        converted = q.to(dtype)
    return converted


@triton.jit
def silu(x):
    return x / (1.0 + tl.exp(-x))


@triton.jit
def matvec_kernel(
    x_ptr,
    norm_ptr,
    w_ptr,
    scale_ptr,
    bias_ptr,
    columns_ptr,
    outlier_ptr,
    residual_ptr,
    out_ptr,
    n_out,
    eps,
    K: tl.constexpr,
    OUTLIERS: tl.constexpr,
    BLOCK_OUTLIERS: tl.constexpr,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
    FAST: tl.constexpr,
):
    """One row of x, BLOCK_N outputs a program, on the ordinary cores. NORM multiplies x by the RMSNorm weight first and
    the sum by 1/rms last, so that the norm costs no kernel of its own."""
    INT8: tl.constexpr = w_ptr.dtype.element_ty == tl.int8
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = rows < n_out
    lanes = tl.arange(0, BLOCK_K)
    w_rows = w_ptr + rows.to(tl.int64)[:, None] * K
    up_rows = w_rows + n_out.to(tl.int64) * K
    acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    acc_up = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    squares = tl.zeros([BLOCK_K], tl.float32)
    if PDL:
        tl_cuda.gdc_launch_dependents()
    for chunk in tl.static_range((K + BLOCK_K - 1) // BLOCK_K):
        k = chunk * BLOCK_K + lanes
        mask = row_mask[:, None] & (k < K)[None, :]
        w = tl.load(w_rows + k[None, :], mask=mask, other=0, eviction_policy="evict_first")
        if GATED:
            w_up = tl.load(up_rows + k[None, :], mask=mask, other=0, eviction_policy="evict_first")
        if PDL and chunk == 0:
            tl_cuda.gdc_wait()
        x = tl.load(x_ptr + k, mask=k < K, other=0).to(tl.float32)
        if NORM:
            squares += x * x
            x *= tl.load(norm_ptr + k, mask=k < K, other=0).to(tl.float32)
        if INT8:
            acc += int8_to_float32(w, FAST) * x[None, :]
            if GATED:
                acc_up += int8_to_float32(w_up, FAST) * x[None, :]
        else:
            acc += w.to(tl.float32) * x[None, :]
            if GATED:
                acc_up += w_up.to(tl.float32) * x[None, :]
    out = tl.sum(acc, axis=1)
    out_up = tl.sum(acc_up, axis=1)
    if INT8:
        out *= tl.load(scale_ptr + rows, mask=row_mask, other=0)
        if GATED:
            out_up *= tl.load(scale_ptr + n_out + rows, mask=row_mask, other=0)
    if OUTLIERS > 0:
        c = tl.arange(0, BLOCK_OUTLIERS)
        column = tl.load(columns_ptr + c, mask=c < OUTLIERS, other=0)
        x = tl.load(x_ptr + column, mask=c < OUTLIERS, other=0).to(tl.float32)
        if NORM:
            x *= tl.load(norm_ptr + column, mask=c < OUTLIERS, other=0).to(tl.float32)
        mask = row_mask[:, None] & (c < OUTLIERS)[None, :]
        o_rows = outlier_ptr + rows[:, None] * OUTLIERS + c[None, :]
        out += tl.sum(tl.load(o_rows, mask=mask, other=0).to(tl.float32) * x[None, :], axis=1)
        if GATED:
            o_up = tl.load(o_rows + n_out * OUTLIERS, mask=mask, other=0).to(tl.float32)
            out_up += tl.sum(o_up * x[None, :], axis=1)
    if NORM:
        rstd = tl.rsqrt(tl.sum(squares, axis=0) / K + eps)
        out *= rstd
        out_up *= rstd
    if BIAS:
        out += tl.load(bias_ptr + rows, mask=row_mask, other=0).to(tl.float32)
        if GATED:
            out_up += tl.load(bias_ptr + n_out + rows, mask=row_mask, other=0).to(tl.float32)
    if GATED:
        out = silu(out) * out_up
    if RESIDUAL:
        out += tl.load(residual_ptr + rows, mask=row_mask, other=0).to(tl.float32)
    tl.store(out_ptr + rows, out.to(out_ptr.dtype.element_ty), mask=row_mask)


@triton.jit
def prefetch_l2(pointers):
    """Ask for the cache lines at ``pointers`` without waiting for them; returns zeros that must be used."""
    return tl.inline_asm_elementwise(
        asm="prefetch.global.L2 [$1]; mov.b32 $0, 0;",
        constraints="=r,l",
        args=[pointers],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def tile_kernel(
    x_ptr,
    w_ptr,
    scale_ptr,
    bias_ptr,
    columns_ptr,
    outlier_ptr,
    residual_ptr,
    out_ptr,
    m,
    n_out,
    K: tl.constexpr,
    OUTLIERS: tl.constexpr,
    BLOCK_OUTLIERS: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    PREFETCH: tl.constexpr,
    PDL: tl.constexpr,
    FAST: tl.constexpr,
):
    """x [m, K] in tiles of BLOCK_M rows. W is the left operand, so that few rows of x pad to a narrow tile and int8
    weights are converted in registers. PREFETCH > 0: that many leading elements of each row go to L2 before the wait."""
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    INT8: tl.constexpr = w_ptr.dtype.element_ty == tl.int8
    pid = tl.program_id(0)
    m_tiles = tl.cdiv(m, BLOCK_M)
    # Row tiles of x vary fastest: programs that run together share a weight tile in L2.
    x_rows = (pid % m_tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = (pid // m_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    x_mask = x_rows < m
    row_mask = rows < n_out
    lanes = tl.arange(0, BLOCK_K)
    w_rows = w_ptr + rows.to(tl.int64)[:, None] * K
    up_rows = w_rows + n_out.to(tl.int64) * K
    x_columns = x_ptr + x_rows.to(tl.int64)[None, :] * K
    if PDL:
        tl_cuda.gdc_launch_dependents()
        if PREFETCH > 0:
            LINE: tl.constexpr = 128 if INT8 else 64
            # Clamped, not masked: a prefetch of a line that is asked for anyway costs nothing.
            lines = tl.minimum(tl.arange(0, PREFETCH // LINE) * LINE, K - 1)
            safe = tl.minimum(rows, n_out - 1).to(tl.int64)[:, None] * K + lines[None, :]
            prefetch_l2(w_ptr + safe)
            if GATED:
                prefetch_l2(w_ptr + n_out.to(tl.int64) * K + safe)
        tl_cuda.gdc_wait()
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    acc_up = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        k = start + lanes
        if K % BLOCK_K == 0:
            w_mask = row_mask[:, None]
            xk_mask = x_mask[None, :]
        else:
            w_mask = row_mask[:, None] & (k < K)[None, :]
            xk_mask = x_mask[None, :] & (k < K)[:, None]
        x = tl.load(x_columns + k[:, None], mask=xk_mask, other=0)
        w = tl.load(w_rows + k[None, :], mask=w_mask, other=0)
        if INT8:
            w = int8_to_operand(w, dtype, FAST)
        acc = tl.dot(w, x, acc, input_precision="ieee")
        if GATED:
            w_up = tl.load(up_rows + k[None, :], mask=w_mask, other=0)
            if INT8:
                w_up = int8_to_operand(w_up, dtype, FAST)
            acc_up = tl.dot(w_up, x, acc_up, input_precision="ieee")
    if INT8:
        acc *= tl.load(scale_ptr + rows, mask=row_mask, other=0)[:, None]
        if GATED:
            acc_up *= tl.load(scale_ptr + n_out + rows, mask=row_mask, other=0)[:, None]
    if OUTLIERS > 0:
        for start in tl.range(0, OUTLIERS, BLOCK_OUTLIERS):
            c = start + tl.arange(0, BLOCK_OUTLIERS)
            c_mask = c < OUTLIERS
            column = tl.load(columns_ptr + c, mask=c_mask, other=0)
            x = tl.load(x_columns + column[:, None], mask=c_mask[:, None] & x_mask[None, :], other=0)
            o_rows = outlier_ptr + rows[:, None] * OUTLIERS + c[None, :]
            o_mask = row_mask[:, None] & c_mask[None, :]
            acc = tl.dot(tl.load(o_rows, mask=o_mask, other=0), x, acc, input_precision="ieee")
            if GATED:
                o_up = tl.load(o_rows + n_out * OUTLIERS, mask=o_mask, other=0)
                acc_up = tl.dot(o_up, x, acc_up, input_precision="ieee")
    if BIAS:
        acc += tl.load(bias_ptr + rows, mask=row_mask, other=0).to(tl.float32)[:, None]
        if GATED:
            acc_up += tl.load(bias_ptr + n_out + rows, mask=row_mask, other=0).to(tl.float32)[:, None]
    if GATED:
        acc = silu(acc) * acc_up
    target = x_rows.to(tl.int64)[None, :] * n_out + rows[:, None]
    mask = row_mask[:, None] & x_mask[None, :]
    if RESIDUAL:
        acc += tl.load(residual_ptr + target, mask=mask, other=0).to(tl.float32)
    tl.store(out_ptr + target, acc.to(out_ptr.dtype.element_ty), mask=mask)
