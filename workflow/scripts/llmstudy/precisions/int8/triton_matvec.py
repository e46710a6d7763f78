"""Triton: the matrix-vector product of a decode step for one sequence.

Decoding reads each weight once, so the kernel is judged by the share of the memory bandwidth that it reaches. Two
things decide it: enough loads in flight, and no gap between one kernel and the next. For the second the kernels take
part in programmatic dependent launch (PDL): a kernel starts while its predecessor drains, loads weights, which no
kernel writes, and only then waits for the activations.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import cuda as tl_cuda

from llmstudy.precisions.int8.triton_convert import silu, to_float32


@triton.jit
def load_rows(pointers, lanes, row_mask, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """The rows at ``pointers`` [BLOCK_N, 1] as a tuple of tiles [BLOCK_N, BLOCK_K], all loads in flight at once."""
    tiles = ()
    for start in tl.static_range(0, K, BLOCK_K):
        mask = row_mask[:, None] & (start + lanes < K)[None, :]
        # Each weight is used once: it should not push activations and the KV cache out of L2.
        tiles = tiles + (
            tl.load(pointers + (start + lanes)[None, :], mask=mask, other=0, eviction_policy="evict_first"),
        )
    return tiles


@triton.jit
def multiply_rows(tiles, xs, CHUNKS: tl.constexpr, FAST: tl.constexpr):
    """Dot products of the rows with x, both in chunks; float32 [BLOCK_N]."""
    # The first product starts the sum, not zeros: every later one is then a single multiply-add.
    acc = to_float32(tiles[0], FAST) * xs[0][None, :]
    for chunk in tl.static_range(1, CHUNKS):
        acc += to_float32(tiles[chunk], FAST) * xs[chunk][None, :]
    return tl.sum(acc, axis=1)


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
    ROUNDS: tl.constexpr,
    PDL: tl.constexpr,
    FAST: tl.constexpr,
):
    """One row of x on the ordinary cores; a program makes ROUNDS times BLOCK_N outputs and loads the weights of the
    next round before it multiplies those of this one. NORM multiplies x by the RMSNorm weight first and the sum by
    1/rms last, so that the norm costs no kernel of its own."""
    INT8: tl.constexpr = w_ptr.dtype.element_ty == tl.int8
    CHUNKS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    rows = tl.program_id(0) * (BLOCK_N * ROUNDS) + tl.arange(0, BLOCK_N)
    lanes = tl.arange(0, BLOCK_K)
    up = n_out.to(tl.int64) * K
    if PDL:
        tl_cuda.gdc_launch_dependents()
    # Weights before the wait: they are on their way while the kernel before this one drains.
    pointers = w_ptr + rows.to(tl.int64)[:, None] * K
    tiles = load_rows(pointers, lanes, rows < n_out, K, BLOCK_K)
    if GATED:
        up_tiles = load_rows(pointers + up, lanes, rows < n_out, K, BLOCK_K)
    if PDL:
        tl_cuda.gdc_wait()
    xs = ()
    for start in tl.static_range(0, K, BLOCK_K):
        x = tl.load(x_ptr + start + lanes, mask=start + lanes < K, other=0).to(tl.float32)
        if NORM:
            if start == 0:
                squares = x * x
            else:
                squares += x * x
            x *= tl.load(norm_ptr + start + lanes, mask=start + lanes < K, other=0).to(tl.float32)
        xs = xs + (x,)
    if NORM:
        rstd = tl.rsqrt(tl.sum(squares, axis=0) / K + eps)
    if OUTLIERS > 0:
        c = tl.arange(0, BLOCK_OUTLIERS)
        column = tl.load(columns_ptr + c, mask=c < OUTLIERS, other=0)
        x_outlier = tl.load(x_ptr + column, mask=c < OUTLIERS, other=0).to(tl.float32)
        if NORM:
            x_outlier *= tl.load(norm_ptr + column, mask=c < OUTLIERS, other=0).to(tl.float32)

    for turn in tl.static_range(ROUNDS):
        row_mask = rows < n_out
        if turn + 1 < ROUNDS:
            next_rows = rows + BLOCK_N
            pointers = w_ptr + next_rows.to(tl.int64)[:, None] * K
            next_tiles = load_rows(pointers, lanes, next_rows < n_out, K, BLOCK_K)
            if GATED:
                next_up_tiles = load_rows(pointers + up, lanes, next_rows < n_out, K, BLOCK_K)
        out = multiply_rows(tiles, xs, CHUNKS, FAST)
        if GATED:
            out_up = multiply_rows(up_tiles, xs, CHUNKS, FAST)
        if INT8:
            out *= tl.load(scale_ptr + rows, mask=row_mask, other=0)
            if GATED:
                out_up *= tl.load(scale_ptr + n_out + rows, mask=row_mask, other=0)
        if OUTLIERS > 0:
            mask = row_mask[:, None] & (c < OUTLIERS)[None, :]
            o_rows = outlier_ptr + rows[:, None] * OUTLIERS + c[None, :]
            out += tl.sum(tl.load(o_rows, mask=mask, other=0).to(tl.float32) * x_outlier[None, :], axis=1)
            if GATED:
                o_up = tl.load(o_rows + n_out * OUTLIERS, mask=mask, other=0).to(tl.float32)
                out_up += tl.sum(o_up * x_outlier[None, :], axis=1)
        if NORM:
            out *= rstd
            if GATED:
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
        if turn + 1 < ROUNDS:
            rows = next_rows
            tiles = next_tiles
            if GATED:
                up_tiles = next_up_tiles
