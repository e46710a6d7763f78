"""Triton: the matrix-vector product of a decode step for one sequence.

Decoding reads each weight once, so the kernel is judged by the share of the memory bandwidth that it reaches. Three
things decide it: enough loads in flight, few instructions for a weight, and no gap between one kernel and the next. For
the second int8 weights are multiplied in integers (``fixed``); for the third the kernels take part in programmatic
dependent launch (PDL): a kernel starts while its predecessor drains, loads weights, which no kernel writes, and only
then waits for the activations.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import cuda as tl_cuda

from llmstudy.kernels.convert import silu, to_float32
from llmstudy.kernels.fixed import dot_groups, eight_sums, number_at, to_fixed, unpack


@triton.jit
def load_rows(
    w_ptr, scale_ptr, rows, lanes, WIDTH: tl.constexpr, BLOCK: tl.constexpr, STORED: tl.constexpr, GROUP: tl.constexpr
):
    """Return ``rows`` of a matrix as a tuple of tiles [BLOCK_N, BLOCK], all loads in flight at once.

    Int4 weights: tuples of a tile of words and their scales, one for 32 weights [BLOCK_N, BLOCK // 4].
    """
    tiles = ()
    for start in tl.static_range(0, WIDTH, BLOCK):
        at = w_ptr + rows.to(tl.int64)[:, None] * WIDTH + (start + lanes)[None, :]
        # Each weight is used once: it should not push activations and the KV cache out of L2.
        if start + BLOCK <= WIDTH:
            tile = tl.load(at, eviction_policy="evict_first")
        else:
            tile = tl.load(at, mask=(start + lanes < WIDTH)[None, :], other=0, eviction_policy="evict_first")
        if STORED == "int4":
            word = start + 4 * tl.arange(0, BLOCK // 4)
            at = scale_ptr + rows[:, None] * (8 * WIDTH // GROUP) + (8 * word // GROUP)[None, :]
            tile = (tile, tl.load(at, mask=(word < WIDTH)[None, :], other=0).to(tl.float32))
        tiles = tiles + (tile,)
    return tiles


@triton.jit
def load_factors(scale_ptr, bias_ptr, rows, STORED: tl.constexpr, BIAS: tl.constexpr):
    """Return scale and bias of outputs, float32, loaded with the weights, so that no product waits for them."""
    scale = 1.0
    bias = 0.0
    if STORED == "int8" or STORED == "fp8":
        scale = tl.load(scale_ptr + rows)
    if BIAS:
        bias = tl.load(bias_ptr + rows).to(tl.float32)
    return scale, bias


@triton.jit
def load_vector(ptr, lanes, WIDTH: tl.constexpr, BLOCK: tl.constexpr, STORED: tl.constexpr):
    """Return a vector as a tuple of chunks [BLOCK]; for int4 weights of two, for the low and high halves of bytes."""
    chunks = ()
    for start in tl.static_range(0, WIDTH, BLOCK):
        mask = start + lanes < WIDTH
        if STORED == "int4":
            at = ptr + 2 * start + lanes // 4 * 8 + lanes % 4
            chunk = (tl.load(at, mask=mask, other=0), tl.load(at + 4, mask=mask, other=0))
        else:
            chunk = tl.load(ptr + start + lanes, mask=mask, other=0)
        chunks = chunks + (chunk,)
    return chunks


@triton.jit
def prepare_words(x, norm, squares, BLOCK: tl.constexpr, NORM: tl.constexpr, dtype: tl.constexpr):
    """Return a chunk of words of x in fixed point, and ``squares`` plus its squares."""
    x0, x1, x2, x3 = unpack(x, 0, dtype), unpack(x, 1, dtype), unpack(x, 2, dtype), unpack(x, 3, dtype)
    if NORM:
        squares += x0 * x0 + x1 * x1 + x2 * x2 + x3 * x3
        x0 *= unpack(norm, 0, dtype)
        x1 *= unpack(norm, 1, dtype)
        x2 *= unpack(norm, 2, dtype)
        x3 *= unpack(norm, 3, dtype)
    return to_fixed(x0, x1, x2, x3, BLOCK), squares


@triton.jit
def prepare(
    x, norm, STORED: tl.constexpr, BLOCK: tl.constexpr, CHUNKS: tl.constexpr, NORM: tl.constexpr, FIXED: tl.constexpr,
    FAST: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """Return chunks of x, times the weight of the norm, for ``multiply_rows``; and the sums of squares of x [BLOCK]."""
    xs = ()
    squares = tl.zeros([BLOCK], tl.float32)
    for chunk in tl.static_range(CHUNKS):
        if STORED == "int4":
            low, squares = prepare_words(x[chunk][0], norm[chunk][0] if NORM else 0, squares, BLOCK, NORM, dtype)
            high, squares = prepare_words(x[chunk][1], norm[chunk][1] if NORM else 0, squares, BLOCK, NORM, dtype)
            xs = xs + ((low, eight_sums(low, BLOCK, FAST), high, eight_sums(high, BLOCK, FAST)),)
        elif FIXED:
            fixed, squares = prepare_words(x[chunk], norm[chunk] if NORM else 0, squares, BLOCK, NORM, dtype)
            xs = xs + (fixed,)
        else:
            number = x[chunk].to(tl.float32)
            if NORM:
                squares += number * number
                number *= norm[chunk].to(tl.float32)
            xs = xs + (number,)
    return xs, squares


@triton.jit
def multiply(
    tile, x, STORED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK: tl.constexpr, FIXED: tl.constexpr, FAST: tl.constexpr
):
    """Return products of a tile of weights with a chunk of x, float32; FIXED: summed over groups of 16."""
    if STORED == "int4":
        words, scale = tile
        low, low_sums, high, high_sums = x
        product = dot_groups(words & 0x0F0F0F0F, low, low_sums[None, :], BLOCK_N, BLOCK, FAST)
        product += dot_groups((words >> 4) & 0x0F0F0F0F, high, high_sums[None, :], BLOCK_N, BLOCK, FAST)
        product *= scale
    elif FIXED:
        product = dot_groups(tile, x, 0, BLOCK_N, BLOCK, FAST)
    else:
        product = to_float32(tile, STORED, FAST) * x[None, :]
    return product


@triton.jit
def multiply_rows(
    tiles, xs, CHUNKS: tl.constexpr, STORED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK: tl.constexpr,
    FIXED: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Return dot products of the rows with x, both in chunks; float32 [BLOCK_N]."""
    # The first product starts the sum, not zeros: every later one is then a single multiply-add.
    acc = multiply(tiles[0], xs[0], STORED, BLOCK_N, BLOCK, FIXED, FAST)
    for chunk in tl.static_range(1, CHUNKS):
        acc += multiply(tiles[chunk], xs[chunk], STORED, BLOCK_N, BLOCK, FIXED, FAST)
    return tl.sum(acc, axis=1)


@triton.jit
def matvec_kernel(
    x_ptr, norm_ptr, w_ptr, scale_ptr, bias_ptr, columns_ptr, outlier_ptr, residual_ptr, out_ptr, n_out, eps,
    K: tl.constexpr, STORED: tl.constexpr, GROUP: tl.constexpr, FIXED: tl.constexpr, OUTLIERS: tl.constexpr,
    BLOCK_OUTLIERS: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, GATED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, ROUNDS: tl.constexpr, PDL: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Multiply one row of x on the ordinary cores.

    A program makes ROUNDS times BLOCK_N outputs and loads the weights of the next round before it multiplies those of
    the present one. NORM multiplies x by the RMSNorm weight first and the sum by 1/rms last, so that the norm needs no
    kernel. FIXED: int8 or int4 weights, x and norm come in words (``fixed``). GROUP: int4 weights that share a scale.
    """
    NUMBERS: tl.constexpr = 8 if STORED == "int4" else 4 if FIXED else 1  # weights of a word
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    WIDTH: tl.constexpr = K // NUMBERS
    BLOCK: tl.constexpr = BLOCK_K // NUMBERS
    CHUNKS: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
    first = tl.program_id(0) * (BLOCK_N * ROUNDS) + tl.arange(0, BLOCK_N)
    # Rows past the end read the last one's weights and are not stored: a mask on every load costs more.
    rows = tl.minimum(first, n_out - 1)
    lanes = tl.arange(0, BLOCK)
    if PDL:
        tl_cuda.gdc_launch_dependents()
    # Weights before the wait: they are on their way while the kernel before this one drains.
    tiles = load_rows(w_ptr, scale_ptr, rows, lanes, WIDTH, BLOCK, STORED, GROUP)
    factors = load_factors(scale_ptr, bias_ptr, rows, STORED, BIAS)
    if GATED:
        up_tiles = load_rows(w_ptr, scale_ptr, n_out + rows, lanes, WIDTH, BLOCK, STORED, GROUP)
        up_factors = load_factors(scale_ptr, bias_ptr, n_out + rows, STORED, BIAS)
    if PDL:
        tl_cuda.gdc_wait()
    x = load_vector(x_ptr, lanes, WIDTH, BLOCK, STORED)
    norm = ()
    if NORM:
        norm = load_vector(norm_ptr, lanes, WIDTH, BLOCK, STORED)
    if RESIDUAL:
        residual = tl.load(residual_ptr + rows)
    if OUTLIERS > 0:
        c = tl.arange(0, BLOCK_OUTLIERS)
        column = tl.load(columns_ptr + c, mask=c < OUTLIERS, other=0)
        x_outlier = number_at(x_ptr, column, c < OUTLIERS, FIXED, dtype)
        if NORM:
            x_outlier *= number_at(norm_ptr, column, c < OUTLIERS, FIXED, dtype)

    for turn in tl.static_range(ROUNDS):
        if turn + 1 < ROUNDS:
            next_rows = tl.minimum(first + (turn + 1) * BLOCK_N, n_out - 1)
            next_tiles = load_rows(w_ptr, scale_ptr, next_rows, lanes, WIDTH, BLOCK, STORED, GROUP)
            next_factors = load_factors(scale_ptr, bias_ptr, next_rows, STORED, BIAS)
            if GATED:
                next_up_tiles = load_rows(w_ptr, scale_ptr, n_out + next_rows, lanes, WIDTH, BLOCK, STORED, GROUP)
                next_up_factors = load_factors(scale_ptr, bias_ptr, n_out + next_rows, STORED, BIAS)
            if RESIDUAL:
                next_residual = tl.load(residual_ptr + next_rows)
        if turn == 0:
            # Here and not before the loop: the second round's weights need not wait for what x becomes.
            xs, squares = prepare(x, norm, STORED, BLOCK, CHUNKS, NORM, FIXED, FAST, dtype)
        out = multiply_rows(tiles, xs, CHUNKS, STORED, BLOCK_N, BLOCK, FIXED, FAST) * factors[0]
        if GATED:
            out_up = multiply_rows(up_tiles, xs, CHUNKS, STORED, BLOCK_N, BLOCK, FIXED, FAST) * up_factors[0]
        if OUTLIERS > 0:
            mask = (c < OUTLIERS)[None, :]
            o_rows = outlier_ptr + rows[:, None] * OUTLIERS + c[None, :]
            out += tl.sum(tl.load(o_rows, mask=mask, other=0).to(tl.float32) * x_outlier[None, :], axis=1)
            if GATED:
                o_up = tl.load(o_rows + n_out * OUTLIERS, mask=mask, other=0).to(tl.float32)
                out_up += tl.sum(o_up * x_outlier[None, :], axis=1)
        if NORM:
            if turn == 0:
                rstd = tl.rsqrt(tl.sum(squares, axis=0) / K + eps)
            out *= rstd
            if GATED:
                out_up *= rstd
        out += factors[1]
        if GATED:
            out = silu(out) * (out_up + up_factors[1])
        if RESIDUAL:
            out += residual.to(tl.float32)
        tl.store(out_ptr + rows, out.to(dtype), mask=first + turn * BLOCK_N < n_out)
        if turn + 1 < ROUNDS:
            rows = next_rows
            tiles = next_tiles
            factors = next_factors
            if GATED:
                up_tiles = next_up_tiles
                up_factors = next_up_factors
            if RESIDUAL:
                residual = next_residual
