"""Triton: products of int8 and int4 weights with 16-bit activations in integers.

Each group of 16 activations becomes fixed-point numbers of 16 bits that share a step, x ≈ step · i, |i| <= 32767, and
``dp2a`` multiplies two of them by two weights in one instruction, exactly. Each loses at most 2⁻¹⁶ of the group's
largest, of which rounding to bf16 has lost up to 2⁻⁹ and to fp16 up to 2⁻¹²; a number of less than 1/128 of the largest
loses more than its rounding to bf16 did.

A word is four consecutive numbers: four weights in an int32, four activations in an int64. A word of int4 weights has
eight, of which a mask makes four bytes of level + 8: eight times the sum of the activations is taken off again.
"""

from __future__ import annotations

import triton
import triton.language as tl

from llmstudy.kernels.convert import larger

GROUP_WORDS = tl.constexpr(4)  # 16 numbers share a step: as many weights as a thread loads at once


@triton.jit
def unpack(word, place: tl.constexpr, dtype: tl.constexpr):
    """Return number ``place`` (0–3) of int64 words, float32."""
    half = (word >> (32 * (place // 2))).to(tl.int32)
    if dtype == tl.bfloat16:
        # the upper half of a float32
        number = (half & -65536 if place % 2 else half << 16).to(tl.float32, bitcast=True)
    else:
        number = (half >> (16 * (place % 2))).to(tl.int16).to(dtype, bitcast=True).to(tl.float32)
    return number


@triton.jit
def number_at(x_ptr, at, mask, FIXED: tl.constexpr, dtype: tl.constexpr):
    """Return the numbers at the indices ``at`` of a vector, float32; FIXED: the pointer is to int64 words."""
    if FIXED:
        word = tl.load(x_ptr + at // 4, mask=mask, other=0)
        number = (word >> (at % 4 * 16)).to(tl.int16).to(dtype, bitcast=True)
    else:
        number = tl.load(x_ptr + at, mask=mask, other=0)
    return number.to(tl.float32)


@triton.jit
def _round(x, inverse):
    # 1.5 · 2²³: the low half of the sum's bits is the rounded product in two's complement.
    return (x * inverse + 12582912.0).to(tl.int32, bitcast=True)


@triton.jit
def to_fixed(x0, x1, x2, x3, WORDS: tl.constexpr):
    """Return int64 words of the integers of WORDS words, of which x0 … x3 are the numbers 0 … 3, and the steps of the
    groups [WORDS // 4]."""
    GROUPS: tl.constexpr = WORDS // GROUP_WORDS
    LEVELS: tl.constexpr = 32767.0
    # An activation that is not finite makes the step NaN or infinite, and with it every output.
    peak = larger(larger(tl.abs(x0), tl.abs(x1)), larger(tl.abs(x2), tl.abs(x3)))
    peak = tl.reduce(tl.reshape(peak, [GROUPS, GROUP_WORDS]), 1, larger)
    # A group of zeros: whatever integers come out are multiplied by a step of 0.
    inverse = tl.broadcast_to((LEVELS / peak)[:, None], [GROUPS, GROUP_WORDS])
    inverse = tl.reshape(inverse, [WORDS])
    low = (_round(x0, inverse) & 0xFFFF) | (_round(x1, inverse) << 16)
    high = (_round(x2, inverse) & 0xFFFF) | (_round(x3, inverse) << 16)
    return low.to(tl.int64) & 0xFFFFFFFF | high.to(tl.int64) << 32, peak * (1.0 / LEVELS)


@triton.jit
def dot_words(weights, x, FAST: tl.constexpr):
    """Return sums of four products: of int32 words of int8 weights times int64 words of ``to_fixed``."""
    if FAST:
        total = tl.inline_asm_elementwise(
            asm="""{
                .reg .b32 low, high;
                .reg .s32 half;
                mov.b64 {low, high}, $2;
                dp2a.lo.s32.s32 half, low, $1, 0;
                dp2a.hi.s32.s32 $0, high, $1, half;
            }""",
            constraints="=r,r,l",
            args=[weights, x],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    else:
        total = tl.zeros_like(weights)
        for place in tl.static_range(4):
            weight = (weights << (24 - 8 * place)) >> 24
            total += weight * (x >> (16 * place)).to(tl.int16).to(tl.int32)
    return total


@triton.jit
def dot_groups(weights, x, offset, BLOCK_N: tl.constexpr, WORDS: tl.constexpr, FAST: tl.constexpr):
    """Return int32 words of weights [BLOCK_N, WORDS] times x of ``to_fixed``: float32 [BLOCK_N, WORDS // 4].

    ``offset`` is taken off each group's sum before the step multiplies it.
    """
    words, step = x
    sums = dot_words(weights, words[None, :], FAST)
    sums = tl.sum(tl.reshape(sums, [BLOCK_N, WORDS // GROUP_WORDS, GROUP_WORDS]), axis=2)
    return (sums - offset).to(tl.float32) * step[None, :]


@triton.jit
def eight_sums(x, WORDS: tl.constexpr, FAST: tl.constexpr):
    """Return eight times the sums of the groups of x of ``to_fixed``, int32 [WORDS // 4]."""
    sums = dot_words(tl.full([WORDS], 0x08080808, tl.int32), x[0], FAST)
    return tl.sum(tl.reshape(sums, [WORDS // GROUP_WORDS, GROUP_WORDS]), axis=1)
