"""Fixed-point activations and their products with int8 weights, interpreted, against integer arithmetic."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
import triton_on_numpy  # noqa: F401
from llmstudy.kernels.fixed import dot_words, number_at, to_fixed, unpack

WORDS = 64


@triton.jit
def convert_kernel(x_ptr, fixed_ptr, step_ptr, WORDS: tl.constexpr, dtype: tl.constexpr):
    at = tl.arange(0, WORDS)
    x = tl.load(x_ptr + at)
    fixed, step = to_fixed(unpack(x, 0, dtype), unpack(x, 1, dtype), unpack(x, 2, dtype), unpack(x, 3, dtype), WORDS)
    tl.store(fixed_ptr + at, fixed)
    tl.store(step_ptr + tl.arange(0, WORDS // 4), step)


@triton.jit
def dot_kernel(weights_ptr, x_ptr, out_ptr, WORDS: tl.constexpr):
    at = tl.arange(0, WORDS)
    tl.store(out_ptr + at, dot_words(tl.load(weights_ptr + at), tl.load(x_ptr + at), False))


@triton.jit
def pick_kernel(x_ptr, at_ptr, out_ptr, COUNT: tl.constexpr, dtype: tl.constexpr):
    at = tl.load(at_ptr + tl.arange(0, COUNT))
    tl.store(out_ptr + tl.arange(0, COUNT), number_at(x_ptr, at, at >= 0, True, dtype))


@pytest.mark.parametrize(("dtype", "language"), [(torch.float16, tl.float16), (torch.bfloat16, tl.bfloat16)])
def test_fixed_point_lies_within_half_a_step_and_the_largest_of_a_group_is_exact(dtype, language):
    torch.manual_seed(0)
    x = (torch.randn(4 * WORDS) * torch.logspace(-4, 4, WORDS // 4).repeat_interleave(16)).to(dtype)
    fixed, step = torch.zeros(WORDS, dtype=torch.int64), torch.zeros(WORDS // 4)
    convert_kernel[(1,)](x.view(torch.int64), fixed, step, WORDS, language)
    groups = x.double().view(-1, 16)
    integers = fixed.view(torch.int16).view(-1, 16)
    peak = groups.abs().amax(1)
    torch.testing.assert_close(step.double(), peak / 32767, rtol=1e-6, atol=0)
    assert torch.equal(integers.abs().amax(1), torch.full((WORDS // 4,), 32767, dtype=torch.int16))
    error = (integers.double() * step.double()[:, None] - groups).abs()
    # the product in float32 is off by 2⁻²⁴ of up to 2¹⁵ steps
    assert bool((error <= 0.503 * step.double()[:, None]).all())


def test_products_of_words_are_exact_up_to_the_ends_of_both_ranges():
    generator = np.random.default_rng(0)
    weights = generator.integers(-128, 128, (WORDS, 4)).astype(np.int8)
    x = generator.integers(-32768, 32768, (WORDS, 4)).astype(np.int16)
    weights[0], x[0] = -128, -32768
    weights[1], x[1] = 127, -32768
    out = torch.zeros(WORDS, dtype=torch.int32)
    words = torch.from_numpy(weights).view(torch.int32).flatten(), torch.from_numpy(x).view(torch.int64).flatten()
    dot_kernel[(1,)](*words, out, WORDS)
    assert out.tolist() == (weights.astype(int) * x.astype(int)).sum(1).tolist()


@pytest.mark.parametrize(("dtype", "language"), [(torch.float16, tl.float16), (torch.bfloat16, tl.bfloat16)])
def test_a_number_is_found_in_its_word(dtype, language):
    x = torch.randn(32).to(dtype)
    at = torch.tensor([0, 5, 31, 18])
    out = torch.zeros(4)
    pick_kernel[(1,)](x.view(torch.int64), at, out, 4, language)
    assert torch.equal(out, x[at].float())
