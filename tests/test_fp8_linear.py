"""The fp8 modules on the CPU against the definition of e4m3 and products in float64."""

import pytest
import torch
from llmstudy.kernels.linear import Fp8Linear, Fp8WeightLinear
from llmstudy.kernels.quantize import FP8, quantize


def e4m3(x):
    """x rounded to the nearest e4m3 number, ties to even: steps of 2⁻³ of the exponent, which ends at -6; float64."""
    exponent = x.abs().log2().floor().clamp(min=-6)
    step = torch.exp2(exponent - 3)
    return (x / step).round() * step


def exact(linear, x, activations):
    """What the module should give, in float64."""
    weight = linear.weight.double() * linear.scale.double()[:, None]
    x = x.double()
    if activations:
        scale = x.abs().amax(1, keepdim=True) / 448
        x = e4m3(x / scale) * scale
    return x @ weight.T + (0 if linear.bias is None else linear.bias.double())


def relative_error(out, reference):
    return ((out.double() - reference).norm() / reference.norm()).item()


def test_weights_are_the_nearest_numbers_of_e4m3():
    torch.manual_seed(0)
    weight = torch.randn(40, 300) * torch.logspace(-4, 2, 40)[:, None]
    weight[3] = 0
    quantized = quantize(weight, dtype=FP8)
    assert torch.equal(quantized.scale.bfloat16().float(), quantized.scale)
    quotient = (weight / torch.where(quantized.scale > 0, quantized.scale, 1)[:, None]).double().clamp(-448, 448)
    assert torch.equal(quantized.q.double(), e4m3(quotient))
    assert quotient.abs().amax(1)[4:].min() > 445  # the whole range is used


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 16, 17, 70])
@pytest.mark.parametrize("kind", [Fp8Linear, Fp8WeightLinear])
def test_forward_multiplies_the_8_bit_numbers(kind, rows, dtype):
    torch.manual_seed(0)
    linear = kind.from_weight(torch.randn(37, 75).to(dtype), torch.randn(37).to(dtype))
    x = (torch.randn(rows, 75) * torch.logspace(-2, 2, rows)[:, None]).to(dtype)
    expected = exact(linear, x, activations=kind is Fp8Linear and rows > 16)
    assert relative_error(linear(x), expected) < (1e-5 if dtype == torch.float32 else 1e-2)


def test_activations_in_8_bit_are_another_number_than_those_in_16():
    torch.manual_seed(0)
    weight, x = torch.randn(40, 64), torch.randn(32, 64)
    full, eight = Fp8WeightLinear.from_weight(weight, None)(x), Fp8Linear.from_weight(weight, None)(x)
    assert 0.01 < relative_error(eight, full.double()) < 0.04


def test_a_token_of_zeros_gives_zeros_and_one_that_is_no_number_shows():
    linear = Fp8Linear.from_weight(torch.randn(40, 64), None)
    x = torch.zeros(20, 64)
    x[1, 3] = torch.inf
    out = linear(x)
    assert torch.equal(out[0], torch.zeros(40)) and not out[1].isfinite().any()


def test_fused_parts_give_their_outputs_side_by_side():
    torch.manual_seed(0)
    parts = [Fp8Linear.from_weight(torch.randn(n, 32), torch.randn(n)) for n in (8, 3)]
    x = torch.randn(20, 32)
    separate = torch.cat([part(x) for part in parts], dim=-1)
    torch.testing.assert_close(Fp8Linear.fuse(parts)(x), separate)
    assert parts[0].weight.untyped_storage().data_ptr() == parts[1].weight.untyped_storage().data_ptr()


def test_memory_is_a_byte_a_weight_and_a_scale_a_row():
    linear = Fp8Linear.from_weight(torch.randn(64, 512).bfloat16(), None)
    assert sum(buffer.numel() * buffer.element_size() for buffer in linear.buffers()) == 64 * 512 + 64 * 4
