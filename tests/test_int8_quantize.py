"""Quantization: error bound, symmetry, outlier columns, in closed form."""

import pytest
import torch
from llmstudy.kernels.quantize import dequantize, quantize


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (64, 576), (1300, 33)])
def test_no_weight_is_off_by_more_than_half_a_step(shape, dtype):
    torch.manual_seed(0)
    weight = (torch.randn(shape) * torch.logspace(-6, 3, shape[0])[:, None]).to(dtype)
    quantized = quantize(weight)
    error = (weight.double() - quantized.q.double() * quantized.scale.double()[:, None]).abs()
    assert (error <= quantized.scale.double()[:, None] / 2 + 1e-30).all()
    assert quantized.q.abs().max() <= 127


def test_every_scale_can_be_passed_in_16_bit_without_rounding():
    quantized = quantize(torch.randn(50, 20))
    assert torch.equal(quantized.scale.to(torch.bfloat16).float(), quantized.scale)


def test_the_negative_weight_has_the_negative_quantized_value():
    weight = torch.randn(20, 31)
    assert torch.equal(quantize(-weight).q, -quantize(weight).q)


def test_a_row_of_zeros_stays_zero():
    weight = torch.zeros(2, 8)
    weight[1, 3] = 5
    quantized = quantize(weight)
    assert quantized.scale[0] == 0 and not quantized.q[0].any()
    assert torch.equal(dequantize(quantized, torch.float32)[0], torch.zeros(8))


def test_weights_on_the_grid_are_exact():
    q = torch.randint(-127, 128, (6, 40), dtype=torch.int8)
    q[:, 0] = 127
    scale = torch.tensor([2.0**-k for k in range(6)])
    assert torch.equal(quantize(q * scale[:, None]).q, q)
    assert torch.equal(quantize(q * scale[:, None]).scale, scale)


def test_outlier_columns_are_kept_and_do_not_set_the_scale():
    weight = torch.randn(9, 30)
    weight[:, 4] *= 1000
    columns = torch.tensor([4, 17])
    quantized = quantize(weight, columns)
    assert torch.equal(quantized.outlier_weight, weight[:, columns])
    assert not quantized.q[:, columns].any()
    rest = [column for column in range(30) if column not in (4, 17)]
    assert torch.equal(quantized.scale, quantize(weight[:, rest]).scale)
    assert torch.equal(dequantize(quantized, torch.float32)[:, columns], weight[:, columns])


@pytest.mark.parametrize("columns", [None, torch.tensor([1])])
def test_quantizing_leaves_the_weight_as_it_was(columns):
    weight = torch.randn(4, 8)
    before = weight.clone()
    quantize(weight, columns)
    assert torch.equal(weight, before)
