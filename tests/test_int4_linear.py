"""Int4 weights on the CPU: levels, packing, and products against float64."""

import pytest
import torch
from llmstudy.errors import Unsupported
from llmstudy.kernels.linear import Int4Linear
from llmstudy.kernels.quantize import INT4, dequantize, group_of, pack, quantize, unpack


def test_packing_is_undone_and_a_word_gives_four_weights_that_follow_each_other():
    levels = torch.randint(-8, 8, (5, 96), dtype=torch.int8)
    packed = pack(levels)
    assert packed.shape == (5, 48) and torch.equal(unpack(packed), levels)
    low = packed.view(torch.int32)[:, 0] & 0x0F0F0F0F
    assert torch.equal(low[:, None].view(torch.uint8).to(torch.int8) - 8, levels[:, :4])


@pytest.mark.parametrize(("in_features", "group"), [(4096, 128), (576, 64), (96, 32)])
def test_a_group_divides_the_inputs(in_features, group):
    assert group_of(in_features) == group
    assert quantize(torch.randn(3, in_features), dtype=INT4).scale.shape == (3, in_features // group)


def test_inputs_that_no_group_divides_are_unsupported():
    with pytest.raises(Unsupported, match="72"):
        Int4Linear.from_weight(torch.randn(4, 72), None)


def test_an_error_is_little_more_than_half_a_step():
    torch.manual_seed(0)
    weight = torch.randn(64, 256) * torch.logspace(-3, 3, 64)[:, None]
    weight[3] = 0
    quantized = quantize(weight, dtype=INT4)
    steps = quantized.scale.float().repeat_interleave(128, dim=1)
    assert bool(((dequantize(quantized, torch.float32) - weight).abs() <= 0.53 * steps).all())
    assert unpack(quantized.q).min() == -8 and unpack(quantized.q).max() == 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 70])
def test_forward_multiplies_the_stored_weight(rows, dtype):
    torch.manual_seed(0)
    linear = Int4Linear.from_weight(torch.randn(37, 96).to(dtype), torch.randn(37).to(dtype))
    x = torch.randn(rows, 96).to(dtype)
    expected = x.double() @ dequantize(linear.quantized, torch.float32).double().T + linear.bias.double()
    error = ((linear(x).double() - expected).norm() / expected.norm()).item()
    assert error < (1e-5 if dtype == torch.float32 else 1.2e-2)


def test_fused_parts_give_their_outputs_side_by_side():
    parts = [Int4Linear.from_weight(torch.randn(n, 64), None) for n in (8, 3)]
    x = torch.randn(4, 64)
    separate = torch.cat([part(x) for part in parts], dim=-1)
    torch.testing.assert_close(Int4Linear.fuse(parts)(x), separate)


def test_memory_is_half_a_byte_a_weight_and_two_bytes_a_group():
    linear = Int4Linear.from_weight(torch.randn(64, 512).bfloat16(), None)
    assert sum(buffer.numel() * buffer.element_size() for buffer in linear.buffers()) == 64 * (256 + 4 * 2)
