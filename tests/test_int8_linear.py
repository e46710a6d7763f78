"""The int8 modules on the CPU against the reference in float64, and what fusing does to them."""

import pytest
import torch
from llmstudy.kernels.linear import Int8Linear, W8A8Linear
from llmstudy.kernels.quantize import dequantize

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}


def expected(linear, x):
    out = x.double() @ dequantize(linear.quantized, torch.float32).double().T
    return out if linear.bias is None else out + linear.bias.double()


def relative_error(out, reference):
    return ((out.double() - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("leading", [(1,), (2, 3), (70,)])
@pytest.mark.parametrize("shape", [(1, 16), (5, 7), (100, 48), (37, 40), (64, 576)])
def test_forward_agrees_with_the_dequantized_weight(shape, leading, dtype):
    torch.manual_seed(0)
    linear = Int8Linear.from_weight(torch.randn(shape).to(dtype), torch.randn(shape[0]).to(dtype))
    x = torch.randn(*leading, shape[1]).to(dtype)
    out = linear(x)
    assert out.dtype == dtype and out.shape == (*leading, shape[0])
    assert relative_error(out, expected(linear, x)) < TOLERANCE[dtype]


@pytest.mark.parametrize("rows", [1, 70])
def test_outlier_columns_are_multiplied_in_full_precision(rows):
    torch.manual_seed(0)
    weight = torch.randn(24, 48)
    columns = torch.tensor([3, 40])
    linear = Int8Linear.from_weight(weight, None, columns)
    x = torch.zeros(rows, 48)
    x[:, columns] = torch.randn(rows, 2) * 100
    torch.testing.assert_close(linear(x), x @ weight.T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("columns", [None, torch.tensor([2, 9])])
def test_fused_parts_give_their_outputs_side_by_side_and_become_views(columns):
    torch.manual_seed(0)
    parts = [Int8Linear.from_weight(torch.randn(n, 32), torch.randn(n), columns) for n in (8, 3, 5)]
    x = torch.randn(4, 32)
    separate = torch.cat([part(x) for part in parts], dim=-1)
    fused = Int8Linear.fuse(parts)
    torch.testing.assert_close(fused(x), separate, rtol=1e-6, atol=1e-6)
    for part in parts:
        assert part.weight.untyped_storage().data_ptr() == fused.weight.untyped_storage().data_ptr()
    torch.testing.assert_close(torch.cat([part(x) for part in parts], dim=-1), separate)


def test_parts_with_different_outlier_columns_cannot_be_fused():
    parts = [Int8Linear.from_weight(torch.randn(4, 32), None, torch.tensor([column])) for column in (1, 2)]
    with pytest.raises(ValueError, match="outlier columns"):
        Int8Linear.fuse(parts)


def test_memory_is_a_byte_a_weight_and_a_scale_a_row():
    linear = Int8Linear.from_weight(torch.randn(64, 512).bfloat16(), None)
    stored = sum(buffer.numel() * buffer.element_size() for buffer in linear.buffers())
    assert stored == 64 * 512 + 64 * 4


def test_w8a8_quantizes_activations_per_token():
    torch.manual_seed(0)
    linear = W8A8Linear.from_weight(torch.randn(40, 64), None)
    x = torch.randn(32, 64) * torch.logspace(-3, 3, 32)[:, None]
    # An independent statement of the same arithmetic, in integers.
    scale = x.abs().amax(1, keepdim=True) / 127
    q = (x / scale).round()
    integers = (q.long() @ linear.weight.long().T).double()
    torch.testing.assert_close(
        linear(x).double(), integers * scale.double() * linear.scale.double(), rtol=1e-5, atol=1e-6
    )
    assert relative_error(linear(x), expected(linear, x)) < 0.02


def test_w8a8_keeps_few_rows_in_full_precision():
    linear = W8A8Linear.from_weight(torch.randn(40, 64), None)
    x = torch.randn(16, 64)
    assert relative_error(linear(x), expected(linear, x)) < 1e-5


def test_w8a8_survives_a_token_of_zeros():
    linear = W8A8Linear.from_weight(torch.randn(40, 64), None)
    assert torch.equal(linear(torch.zeros(20, 64)), torch.zeros(20, 40))
