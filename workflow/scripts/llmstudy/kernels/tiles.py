"""Triton: products with several rows on tensor cores.

Both kernels compute ``out = epilogue((x · Wᵀ) * scale + x[:, outliers] · Oᵀ + bias)`` with float32 accumulation, W
row-major [out, in]. Epilogues: add a residual, or SwiGLU over a weight that holds the gate rows above the up rows.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import cuda as tl_cuda

from llmstudy.kernels.convert import int4_operands, silu, to_operand


@triton.jit
def finish(
    acc, acc_up, x_ptr, scale_ptr, bias_ptr, columns_ptr, outlier_ptr, residual_ptr, out_ptr, x_rows, rows, m, n_out,
    K: tl.constexpr, OUTLIERS: tl.constexpr, BLOCK_OUTLIERS: tl.constexpr, STORED: tl.constexpr, BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """Finish a tile acc [BLOCK_N, BLOCK_M]: scale, outlier columns, bias, SwiGLU, residual, store."""
    x_mask = x_rows < m
    row_mask = rows < n_out
    if STORED == "int8" or STORED == "fp8":
        acc *= tl.load(scale_ptr + rows, mask=row_mask, other=0)[:, None]
        if GATED:
            acc_up *= tl.load(scale_ptr + n_out + rows, mask=row_mask, other=0)[:, None]
    if OUTLIERS > 0:
        for start in tl.range(0, OUTLIERS, BLOCK_OUTLIERS):
            c = start + tl.arange(0, BLOCK_OUTLIERS)
            c_mask = c < OUTLIERS
            column = tl.load(columns_ptr + c, mask=c_mask, other=0)
            x_at = x_ptr + x_rows.to(tl.int64)[None, :] * K + column[:, None]
            x = tl.load(x_at, mask=c_mask[:, None] & x_mask[None, :], other=0)
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


@triton.jit
def rows_kernel(
    x_ptr, w_ptr, scale_ptr, bias_ptr, columns_ptr, outlier_ptr, residual_ptr, out_ptr, m, n_out,
    K: tl.constexpr, STORED: tl.constexpr, OUTLIERS: tl.constexpr, BLOCK_OUTLIERS: tl.constexpr, BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr, GATED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WARPS: tl.constexpr, STAGES: tl.constexpr,
    PDL: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Multiply a few rows of x [m, K], BLOCK_N outputs a program. Every warp takes a slice of K (a batched product over
    WARPS slices), so that no two warps convert the same weight."""
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    pid = tl.program_id(0)
    m_tiles = tl.cdiv(m, BLOCK_M)
    x_rows = (pid % m_tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = (pid // m_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    slices = (tl.arange(0, WARPS) * BLOCK_K)[:, None, None]
    lanes = tl.arange(0, BLOCK_K)
    w_k = slices + lanes[None, None, :]
    x_k = slices + lanes[None, :, None]
    row_mask = (rows < n_out)[None, :, None]
    x_mask = (x_rows < m)[None, None, :]
    w_rows = w_ptr + rows.to(tl.int64)[None, :, None] * K
    up_rows = w_rows + n_out.to(tl.int64) * K
    x_columns = x_ptr + x_rows.to(tl.int64)[None, None, :] * K
    if PDL:
        tl_cuda.gdc_launch_dependents()
        tl_cuda.gdc_wait()
    acc = tl.zeros([WARPS, BLOCK_N, BLOCK_M], tl.float32)
    acc_up = tl.zeros([WARPS, BLOCK_N, BLOCK_M], tl.float32)
    for start in tl.range(0, K, WARPS * BLOCK_K, num_stages=STAGES):
        if K % (WARPS * BLOCK_K) == 0:
            w_mask = row_mask
            xk_mask = x_mask
        else:
            w_mask = row_mask & (start + w_k < K)
            xk_mask = x_mask & (start + x_k < K)
        x = tl.load(x_columns + (start + x_k), mask=xk_mask, other=0)
        w = tl.load(w_rows + (start + w_k), mask=w_mask, other=0)
        w = to_operand(w, STORED, dtype, FAST)
        acc = tl.dot(w, x, acc, input_precision="ieee")
        if GATED:
            w_up = tl.load(up_rows + (start + w_k), mask=w_mask, other=0)
            w_up = to_operand(w_up, STORED, dtype, FAST)
            acc_up = tl.dot(w_up, x, acc_up, input_precision="ieee")
    finish(
        tl.sum(acc, axis=0), tl.sum(acc_up, axis=0), x_ptr, scale_ptr, bias_ptr, columns_ptr, outlier_ptr, residual_ptr,
        out_ptr, x_rows, rows, m, n_out, K, OUTLIERS, BLOCK_OUTLIERS, STORED, BIAS, RESIDUAL, GATED,
    )  # fmt: skip


@triton.jit
def int4_rows_kernel(
    x_ptr, w_ptr, scale_ptr, bias_ptr, residual_ptr, out_ptr, m, n_out,
    K: tl.constexpr, GROUP: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, GATED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WARPS: tl.constexpr, STAGES: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """``rows_kernel`` for int4 weights: the low and the high halves of bytes meet different columns of x. The BLOCK_K
    weights of a warp's turn, BLOCK_K / 2 bytes, lie in one GROUP."""
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    pid = tl.program_id(0)
    m_tiles = tl.cdiv(m, BLOCK_M)
    x_rows = (pid % m_tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = (pid // m_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    slices = (tl.arange(0, WARPS) * BLOCK_K)[:, None, None]
    byte = tl.arange(0, BLOCK_K // 2)
    low_k = slices + (byte // 16 * 32 + byte % 16)[None, :, None]
    row_mask = (rows < n_out)[None, :, None]
    x_mask = (x_rows < m)[None, None, :]
    row = rows.to(tl.int64)[None, :, None]
    up = row + n_out
    x_columns = x_ptr + x_rows.to(tl.int64)[None, None, :] * K
    if PDL:
        tl_cuda.gdc_launch_dependents()
        tl_cuda.gdc_wait()
    acc = tl.zeros([WARPS, BLOCK_N, BLOCK_M], tl.float32)
    acc_up = tl.zeros([WARPS, BLOCK_N, BLOCK_M], tl.float32)
    for start in tl.range(0, K, WARPS * BLOCK_K, num_stages=STAGES):
        xk_mask = x_mask & (start + low_k < K)
        w_mask = row_mask & (start + slices < K)
        x_low = tl.load(x_columns + (start + low_k), mask=xk_mask, other=0)
        x_high = tl.load(x_columns + (start + low_k + 16), mask=xk_mask, other=0)
        at = (start + slices) // 2 + byte[None, None, :]
        group = (start + slices) // GROUP
        w = tl.load(w_ptr + row * (K // 2) + at, mask=w_mask, other=0)
        scale = tl.load(scale_ptr + row * (K // GROUP) + group, mask=w_mask, other=0)
        low, high = int4_operands(w, scale, dtype)
        acc = tl.dot(low, x_low, acc, input_precision="ieee")
        acc = tl.dot(high, x_high, acc, input_precision="ieee")
        if GATED:
            w = tl.load(w_ptr + up * (K // 2) + at, mask=w_mask, other=0)
            scale = tl.load(scale_ptr + up * (K // GROUP) + group, mask=w_mask, other=0)
            low, high = int4_operands(w, scale, dtype)
            acc_up = tl.dot(low, x_low, acc_up, input_precision="ieee")
            acc_up = tl.dot(high, x_high, acc_up, input_precision="ieee")
    finish(
        tl.sum(acc, axis=0), tl.sum(acc_up, axis=0), x_ptr, scale_ptr, bias_ptr, x_ptr, x_ptr, residual_ptr, out_ptr,
        x_rows, rows, m, n_out, K, 0, 16, "int4", BIAS, RESIDUAL, GATED,
    )  # fmt: skip


@triton.jit
def tile_kernel(
    x_ptr, w_ptr, scale_ptr, bias_ptr, columns_ptr, outlier_ptr, residual_ptr, out_ptr, m, n_out,
    K: tl.constexpr, STORED: tl.constexpr, OUTLIERS: tl.constexpr, BLOCK_OUTLIERS: tl.constexpr, BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr, GATED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """Multiply x [m, K] in tiles of BLOCK_M rows. W is the left operand, so that few rows of x pad to a narrow tile and
    8-bit weights are converted in registers."""
    dtype: tl.constexpr = x_ptr.dtype.element_ty
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
        w = to_operand(w, STORED, dtype, FAST)
        acc = tl.dot(w, x, acc, input_precision="ieee")
        if GATED:
            w_up = tl.load(up_rows + k[None, :], mask=w_mask, other=0)
            w_up = to_operand(w_up, STORED, dtype, FAST)
            acc_up = tl.dot(w_up, x, acc_up, input_precision="ieee")
    finish(
        acc, acc_up, x_ptr, scale_ptr, bias_ptr, columns_ptr, outlier_ptr, residual_ptr, out_ptr, x_rows, rows, m,
        n_out, K, OUTLIERS, BLOCK_OUTLIERS, STORED, BIAS, RESIDUAL, GATED,
    )  # fmt: skip
