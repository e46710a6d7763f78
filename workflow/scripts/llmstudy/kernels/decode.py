"""Triton kernels of a LLaMA that are not products: RMSNorm, RoPE, SwiGLU, attention of a token, greedy sampling.

In a decode step each waits for its predecessor before it touches anything that a kernel writes (programmatic dependent
launch, see ``matvec``); since all do, every earlier kernel is complete when a kernel has passed its wait.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import cuda as tl_cuda

from llmstudy.kernels.convert import silu


@triton.jit
def rms_norm_kernel(
    x_ptr, added_ptr, norm_ptr, out_ptr, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Normalize one row a program; ADD: add the row of ``added`` to x in place first. Rounds to the dtype of the output
    before the product with the weight, as the library does."""
    if PDL:
        tl_cuda.gdc_launch_dependents()
        tl_cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64) * WIDTH
    i = tl.arange(0, BLOCK)
    mask = i < WIDTH
    x = tl.load(x_ptr + row + i, mask=mask, other=0)
    if ADD:
        x += tl.load(added_ptr + row + i, mask=mask, other=0)
        tl.store(x_ptr + row + i, x, mask=mask)
    x = x.to(tl.float32)
    x *= tl.rsqrt(tl.sum(x * x, axis=0) / WIDTH + eps)
    weight = tl.load(norm_ptr + i, mask=mask, other=0)
    tl.store(out_ptr + row + i, x.to(weight.dtype) * weight, mask=mask)


@triton.jit
def times_norm(x, factor, weight, dtype: tl.constexpr):
    """Return x, float32, times ``factor`` and then ``weight``, each rounded to ``dtype`` as the library does."""
    return ((x * factor).to(dtype) * weight.to(dtype)).to(tl.float32)


@triton.jit
def rotate_prompt_kernel(
    qkv_ptr, keys_ptr, values_ptr, cos_ptr, sin_ptr, q_norm_ptr, k_norm_ptr, tokens, length, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HALF_BLOCK: tl.constexpr,
    HEAD_BLOCK: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Rotate a prompt: queries in place, keys and values into the cache; grid (batch * tokens,). NORM: RMSNorm of each
    query and key head first."""
    HALF: tl.constexpr = HEAD_DIM // 2
    dtype: tl.constexpr = qkv_ptr.dtype.element_ty
    sequence = tl.program_id(0) // tokens
    position = tl.program_id(0) % tokens
    d = tl.arange(0, HALF_BLOCK)
    d_mask = d < HALF
    cos = tl.load(cos_ptr + position * HEAD_DIM + d, mask=d_mask, other=0).to(tl.float32)[None, :]
    sin = tl.load(sin_ptr + position * HEAD_DIM + d, mask=d_mask, other=0).to(tl.float32)[None, :]
    row = qkv_ptr + tl.program_id(0).to(tl.int64) * ((HEADS + 2 * KV_HEADS) * HEAD_DIM)
    for first in tl.static_range(0, HEADS + 2 * KV_HEADS, HEAD_BLOCK):
        head = first + tl.arange(0, HEAD_BLOCK)
        mask = (head < HEADS + 2 * KV_HEADS)[:, None] & d_mask[None, :]
        at = row + head[:, None] * HEAD_DIM + d[None, :]
        low = tl.load(at, mask=mask, other=0).to(tl.float32)
        high = tl.load(at + HALF, mask=mask, other=0).to(tl.float32)
        own_low, own_high = low, high
        if NORM:
            factor = tl.rsqrt((tl.sum(low * low, axis=1) + tl.sum(high * high, axis=1)) / HEAD_DIM + eps)[:, None]
            is_q = (head < HEADS)[:, None]
            q_weight = tl.load(q_norm_ptr + d, mask=d_mask, other=0)[None, :]
            k_weight = tl.load(k_norm_ptr + d, mask=d_mask, other=0)[None, :]
            own_low = times_norm(low, factor, tl.where(is_q, q_weight, k_weight), dtype)
            q_weight = tl.load(q_norm_ptr + HALF + d, mask=d_mask, other=0)[None, :]
            k_weight = tl.load(k_norm_ptr + HALF + d, mask=d_mask, other=0)[None, :]
            own_high = times_norm(high, factor, tl.where(is_q, q_weight, k_weight), dtype)
        turned_low = own_low * cos - own_high * sin
        turned_high = own_high * cos + own_low * sin
        if first < HEADS:
            is_query = mask & (head < HEADS)[:, None]
            tl.store(at, turned_low.to(dtype), mask=is_query)
            tl.store(at + HALF, turned_high.to(dtype), mask=is_query)
        if first + HEAD_BLOCK > HEADS:
            is_key = mask & ((head >= HEADS) & (head < HEADS + KV_HEADS))[:, None]
            kv_row = (sequence * KV_HEADS + (head - HEADS) % KV_HEADS).to(tl.int64) * length + position
            cache = kv_row[:, None] * HEAD_DIM + d[None, :]
            tl.store(keys_ptr + cache, turned_low.to(dtype), mask=is_key)
            tl.store(keys_ptr + cache + HALF, turned_high.to(dtype), mask=is_key)
            is_value = mask & (head >= HEADS + KV_HEADS)[:, None]
            tl.store(values_ptr + cache, low.to(dtype), mask=is_value)
            tl.store(values_ptr + cache + HALF, high.to(dtype), mask=is_value)


@triton.jit
def swiglu_kernel(gate_up_ptr, out_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Store silu(gate) * up of rows [2 * WIDTH]; grid (rows, blocks of columns)."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = i < WIDTH
    gate = tl.load(gate_up_ptr + row * 2 * WIDTH + i, mask=mask, other=0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * 2 * WIDTH + WIDTH + i, mask=mask, other=0).to(tl.float32)
    tl.store(out_ptr + row * WIDTH + i, (silu(gate) * up).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def attention_kernel(
    qkv_ptr, keys_ptr, values_ptr, cos_ptr, sin_ptr, position_ptr, partial_ptr, stats_ptr, arrivals_ptr, out_ptr,
    q_norm_ptr, k_norm_ptr, length, scale_log2, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, SPLITS: tl.constexpr,
    GROUP_BLOCK: tl.constexpr, MERGE_BLOCK: tl.constexpr, DIM_BLOCK: tl.constexpr, TOKEN_BLOCK: tl.constexpr,
    WINDOW: tl.constexpr, NORM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Rotate, write to the cache and attend for one new token; grid (batch * KV_HEADS, SPLITS).

    NORM: RMSNorm of each query and key head first. WINDOW: tokens to attend to, the new one included; 0 for all.

    A program handles the query heads that share a key head over its share of the valid context (flash decoding). The
    first split also takes the new token itself, from registers, and writes it to the cache. The last split to arrive
    merges all partial results, so that no second kernel is needed.
    """
    if PDL:
        tl_cuda.gdc_launch_dependents()
    GROUP: tl.constexpr = HEADS // KV_HEADS
    sequence = tl.program_id(0) // KV_HEADS
    kv_head = tl.program_id(0) % KV_HEADS
    split = tl.program_id(1)
    dtype: tl.constexpr = qkv_ptr.dtype.element_ty
    position = tl.load(position_ptr + sequence)

    d = tl.arange(0, DIM_BLOCK)
    d_mask = d < HEAD_DIM
    partner = tl.where(d < HEAD_DIM // 2, d + HEAD_DIM // 2, d - HEAD_DIM // 2)
    sign = tl.where(d < HEAD_DIM // 2, -1.0, 1.0)
    cos = tl.load(cos_ptr + position * HEAD_DIM + d, mask=d_mask, other=0).to(tl.float32)
    sin = tl.load(sin_ptr + position * HEAD_DIM + d, mask=d_mask, other=0).to(tl.float32) * sign
    oldest = tl.maximum(position + 1 - WINDOW, 0) if WINDOW else 0
    share = tl.cdiv(tl.cdiv(position - oldest, TOKEN_BLOCK), SPLITS) * TOKEN_BLOCK
    start = oldest + split * share
    stop = tl.minimum(start + share, position)
    cache = tl.program_id(0).to(tl.int64) * length * HEAD_DIM
    # Position and earlier keys and values were written by earlier replays: the first block can be on its way while the
    # projection before this kernel still runs.
    t = start + tl.arange(0, TOKEN_BLOCK)
    k_at = keys_ptr + cache + t[None, :] * HEAD_DIM + d[:, None]
    v_at = values_ptr + cache + t[:, None] * HEAD_DIM + d[None, :]
    k = tl.load(k_at, mask=(t < stop)[None, :] & d_mask[:, None], other=0)
    v = tl.load(v_at, mask=(t < stop)[:, None] & d_mask[None, :], other=0)
    if PDL:
        tl_cuda.gdc_wait()
    g = tl.arange(0, GROUP_BLOCK)
    q_mask = (g < GROUP)[:, None] & d_mask[None, :]
    row = qkv_ptr + sequence * ((HEADS + 2 * KV_HEADS) * HEAD_DIM)
    q_head = row + (kv_head * GROUP + g)[:, None] * HEAD_DIM
    q = tl.load(q_head + d[None, :], mask=q_mask, other=0).to(tl.float32)
    q_partner = tl.load(q_head + partner[None, :], mask=q_mask, other=0).to(tl.float32)
    k_head = row + (HEADS + kv_head) * HEAD_DIM
    k_new = tl.load(k_head + d, mask=d_mask, other=0).to(tl.float32)
    k_partner = tl.load(k_head + partner, mask=d_mask, other=0).to(tl.float32)
    if NORM:
        factor = tl.rsqrt(tl.sum(q * q, axis=1) / HEAD_DIM + eps)[:, None]
        q = times_norm(q, factor, tl.load(q_norm_ptr + d, mask=d_mask, other=0)[None, :], dtype)
        q_partner = times_norm(q_partner, factor, tl.load(q_norm_ptr + partner, mask=d_mask, other=0)[None, :], dtype)
        factor = tl.rsqrt(tl.sum(k_new * k_new, axis=0) / HEAD_DIM + eps)
        k_new = times_norm(k_new, factor, tl.load(k_norm_ptr + d, mask=d_mask, other=0), dtype)
        k_partner = times_norm(k_partner, factor, tl.load(k_norm_ptr + partner, mask=d_mask, other=0), dtype)
    q = (q * cos[None, :] + q_partner * sin[None, :]).to(dtype)
    k_new = (k_new * cos + k_partner * sin).to(dtype)
    v_new = tl.load(k_head + KV_HEADS * HEAD_DIM + d, mask=d_mask, other=0)

    first = split == 0
    tl.store(keys_ptr + cache + position * HEAD_DIM + d, k_new, mask=d_mask & first)
    tl.store(values_ptr + cache + position * HEAD_DIM + d, v_new, mask=d_mask & first)
    new_score = tl.sum(q.to(tl.float32) * k_new.to(tl.float32)[None, :], axis=1) * scale_log2
    peak = tl.where(first, new_score, float("-inf"))
    total = tl.where(first, 1.0, 0.0) + tl.zeros([GROUP_BLOCK], tl.float32)
    acc = tl.where(first, 1.0, 0.0) * v_new.to(tl.float32)[None, :] + tl.zeros([GROUP_BLOCK, DIM_BLOCK], tl.float32)

    for begin in tl.range(start, stop, TOKEN_BLOCK):
        t_mask = begin + tl.arange(0, TOKEN_BLOCK) < stop
        k_at += TOKEN_BLOCK * HEAD_DIM
        v_at += TOKEN_BLOCK * HEAD_DIM
        ahead = begin + TOKEN_BLOCK + tl.arange(0, TOKEN_BLOCK) < stop
        k_next = tl.load(k_at, mask=ahead[None, :] & d_mask[:, None], other=0)
        v_next = tl.load(v_at, mask=ahead[:, None] & d_mask[None, :], other=0)
        scores = tl.dot(q, k, input_precision="ieee") * scale_log2
        scores = tl.where(t_mask[None, :], scores, float("-inf"))
        peak_next = tl.maximum(peak, tl.max(scores, axis=1))
        p = tl.exp2(scores - peak_next[:, None])
        decay = tl.exp2(peak - peak_next)
        total = total * decay + tl.sum(p, axis=1)
        acc = tl.dot(p.to(dtype), v, acc * decay[:, None], input_precision="ieee")
        peak = peak_next
        k = k_next
        v = v_next

    out_head = out_ptr + (sequence * HEADS + kv_head * GROUP) * HEAD_DIM
    if SPLITS == 1:
        tl.store(out_head + g[:, None] * HEAD_DIM + d[None, :], (acc / total[:, None]).to(dtype), mask=q_mask)
    else:
        # partial [programs, GROUP, SPLITS, DIM_BLOCK] and stats [programs, 2, GROUP, SPLITS], float32
        slot = (tl.program_id(0) * GROUP + g) * SPLITS + split
        stat = (tl.program_id(0) * 2 * GROUP + g) * SPLITS + split
        tl.store(partial_ptr + slot[:, None] * DIM_BLOCK + d[None, :], acc, mask=(g < GROUP)[:, None])
        tl.store(stats_ptr + stat, peak, mask=g < GROUP)
        tl.store(stats_ptr + stat + GROUP * SPLITS, total, mask=g < GROUP)
        # Every thread's stores must be there before the one thread that counts the arrival publishes them.
        tl.debug_barrier()
        arrived = tl.atomic_add(arrivals_ptr + tl.program_id(0), 1, sem="acq_rel", scope="gpu")
        if arrived == SPLITS - 1:
            tl.store(arrivals_ptr + tl.program_id(0), 0)
            # .cg: the other programs' results are in L2, never in this SM's L1
            for head in tl.static_range(0, GROUP, MERGE_BLOCK):
                m = head + tl.arange(0, MERGE_BLOCK)
                m_mask = m < GROUP
                head_stats = stats_ptr + (tl.program_id(0) * 2 * GROUP + m) * SPLITS
                stats_at = head_stats[:, None] + tl.arange(0, SPLITS)[None, :]
                peaks = tl.load(stats_at, mask=m_mask[:, None], other=0, cache_modifier=".cg")
                totals = tl.load(stats_at + GROUP * SPLITS, mask=m_mask[:, None], other=1, cache_modifier=".cg")
                top = tl.max(peaks, axis=1)
                whole = tl.sum(totals * tl.exp2(peaks - top[:, None]), axis=1)
                merged = tl.zeros([MERGE_BLOCK, DIM_BLOCK], tl.float32)
                parts_at = partial_ptr + ((tl.program_id(0) * GROUP + m) * SPLITS)[:, None] * DIM_BLOCK + d[None, :]
                # All loads in flight at once: nothing in here waits for another thread.
                for s in tl.static_range(SPLITS):
                    weight = tl.exp2(tl.load(head_stats + s, mask=m_mask, other=0, cache_modifier=".cg") - top)
                    part = tl.load(parts_at + s * DIM_BLOCK, mask=m_mask[:, None], other=0, cache_modifier=".cg")
                    merged += part * weight[:, None]
                out_at = out_head + m[:, None] * HEAD_DIM + d[None, :]
                tl.store(out_at, (merged / whole[:, None]).to(dtype), mask=m_mask[:, None] & d_mask[None, :])


@triton.jit
def sample_kernel(
    logits_ptr, embedding_ptr, position_ptr, tokens_ptr, x_ptr, prompt_tokens, new_tokens,
    VOCABULARY: tl.constexpr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr, HIDDEN_BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Take the first largest logit of a row as the next token (greedy); one row a program.

    Writes it to tokens [batch, new_tokens] and its embedding to x, and advances the position of the row by one.
    """
    if PDL:
        tl_cuda.gdc_launch_dependents()
        tl_cuda.gdc_wait()
    row = tl.program_id(0)
    lanes = tl.arange(0, BLOCK)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    best_at = tl.zeros([BLOCK], tl.int32)
    for start in tl.range(0, VOCABULARY, BLOCK, num_stages=3):
        at = start + lanes
        logit = tl.load(logits_ptr + row.to(tl.int64) * VOCABULARY + at, mask=at < VOCABULARY, other=float("-inf"))
        better = logit.to(tl.float32) > best
        best = tl.where(better, logit.to(tl.float32), best)
        best_at = tl.where(better, at, best_at)
    token = tl.min(tl.where(best == tl.max(best, axis=0), best_at, VOCABULARY - 1), axis=0)
    position = tl.load(position_ptr + row)
    tl.store(tokens_ptr + row * new_tokens + position - prompt_tokens + 1, token.to(tl.int64))
    h = tl.arange(0, HIDDEN_BLOCK)
    embedded = tl.load(embedding_ptr + token.to(tl.int64) * HIDDEN + h, mask=h < HIDDEN, other=0)
    tl.store(x_ptr + row * HIDDEN + h, embedded, mask=h < HIDDEN)
    tl.store(position_ptr + row, position + 1)
