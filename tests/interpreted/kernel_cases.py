"""Triton's linear kernels, interpreted, against float64; bf16 is left to the GPU (the interpreter's dot lacks it)."""

import itertools

import pytest
import torch
import triton_on_numpy  # noqa: F401
from llmstudy.kernels import quantize as reference
from llmstudy.kernels.launch import (
    LinearOperand,
    MatvecTile,
    RowsTile,
    Tile,
    choose,
    dequantize,
    linear,
    quantize_tokens,
)
from llmstudy.kernels.quantize import FP8, INT4, quantize
from torch.nn import functional

TILES = {
    "chosen": None,
    "matvec": MatvecTile(block_n=4, block_k=32, warps=4, rounds=3),
    "rows": RowsTile(block_m=16, block_n=16, block_k=16, warps=2, stages=2),
    "tile": Tile(block_m=16, block_n=16, block_k=16, warps=4, stages=2),
}
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize(
    ("tile", "m"),
    [("chosen", 1), ("chosen", 3), ("chosen", 70), ("matvec", 1), ("rows", 5), ("rows", 20), ("tile", 20)],
)
@pytest.mark.parametrize(
    ("stored", "k"),
    [("int8", 75), ("int8", 80), ("int8 + outliers", 75), ("int8 + outliers", 80), ("fp8", 75), ("dense", 75)],
)
def test_a_linear_of_awkward_shape(k, tile, m, gated, stored, dtype):
    """Rows of 75 are multiplied in floating point; one row of 80, in 16 bit by int8, in integers."""
    torch.manual_seed(0)
    n = 37
    weight = torch.randn(2 * n if gated else n, k).to(dtype)
    bias, residual, x = torch.randn(len(weight)).to(dtype), torch.randn(m, n).to(dtype), torch.randn(m, k).to(dtype)
    norm = torch.rand(k).to(dtype) if m == 1 else None
    if stored == "dense":
        operand, full = LinearOperand(weight, None, bias), weight.double()
    else:
        columns = torch.tensor([0, 11, 74]) if "outliers" in stored else None
        quantized = quantize(weight, columns, FP8 if stored == "fp8" else torch.int8)
        columns, outlier = quantized.outlier_columns, quantized.outlier_weight
        operand = LinearOperand(quantized.q, quantized.scale, bias, columns, outlier)
        full = reference.dequantize(quantized, torch.float32).double()
    normed = x.double()
    if norm is not None:
        normed = normed / (normed.square().mean() + 1e-5).sqrt() * norm.double()
    expected = normed @ full.T + bias.double()
    if gated:
        expected = functional.silu(expected[:, :n]) * expected[:, n:]
    expected = expected + residual.double()
    memory = torch.full((m * n + 64,), torch.nan, dtype=dtype)
    out = memory[: m * n].view(m, n)
    linear(x, operand, out=out, residual=residual, norm=norm, eps=1e-5, gated=gated, tile=TILES[tile])
    assert memory[m * n :].isnan().all()  # nothing is written past the end
    assert ((out.double() - expected).norm() / expected.norm()).item() < TOLERANCE[dtype]


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize(("k", "rounds"), [(96, 1), (320, 3), (1024, 2)])
def test_a_linear_of_int4_weights(k, rounds, m, gated):
    """Groups of 32, 64 and 128 inputs, and rows that end inside a chunk."""
    torch.manual_seed(0)
    n = 21
    quantized = quantize(torch.randn(2 * n if gated else n, k), dtype=INT4)
    bias, residual = torch.randn(len(quantized.q)).half(), torch.randn(m, n).half()
    x, norm = torch.randn(m, k).half(), torch.rand(k).half() if m == 1 else None
    normed = x.double()
    if norm is not None:
        normed = normed / (normed.square().mean() + 1e-5).sqrt() * norm.double()
    expected = normed @ reference.dequantize(quantized, torch.float32).double().T + bias.double()
    if gated:
        expected = functional.silu(expected[:, :n]) * expected[:, n:]
    operand = LinearOperand(quantized.q, quantized.scale, bias)
    tile = MatvecTile(block_n=4, block_k=256, warps=4, rounds=rounds) if m == 1 else None
    out = linear(x, operand, residual=residual, norm=norm, eps=1e-5, gated=gated, tile=tile)
    expected = expected + residual.double()
    assert ((out.double() - expected).norm() / expected.norm()).item() < 2e-3


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_an_activation_that_is_no_number_shows(bad):
    x = torch.randn(1, 64).half()
    x[0, 37] = bad
    quantized = quantize(torch.randn(9, 64))
    assert not linear(x, LinearOperand(quantized.q, quantized.scale)).isfinite().any()


def test_vectors_of_several_dtypes_are_refused():
    quantized = quantize(torch.randn(9, 64))
    operand = LinearOperand(quantized.q, quantized.scale)
    with pytest.raises(ValueError, match="one dtype"):
        linear(torch.randn(1, 64).half(), operand, norm=torch.rand(64))
    with pytest.raises(ValueError, match="one dtype"):
        linear(torch.randn(1, 64).half(), operand, out=torch.empty(1, 9))


def test_activations_of_zero_give_zero():
    quantized = quantize(torch.randn(9, 64))
    x = torch.zeros(1, 64, dtype=torch.float16)
    assert torch.equal(linear(x, LinearOperand(quantized.q, quantized.scale)), torch.zeros(1, 9).half())


def test_a_huge_activation_costs_its_group_of_16_alone():
    """Its step is 60000 / 32767: 0.01 beside it is lost, but whole in the next group. A step a row would lose both."""
    weight = torch.ones(8, 64)
    weight[:, 3] = 0
    quantized = quantize(weight)
    x = torch.zeros(1, 64, dtype=torch.float16)
    x[0, 3], x[0, 4], x[0, 20] = 60000, 0.01, 0.01
    out = linear(x, LinearOperand(quantized.q, quantized.scale))
    torch.testing.assert_close(out, torch.full((1, 8), 0.01).half(), rtol=1e-3, atol=0)


def test_several_rows_take_no_norm():
    with pytest.raises(ValueError, match="normalized rows"):
        linear(torch.randn(2, 16), LinearOperand(torch.randn(4, 16)), norm=torch.ones(16))


@pytest.mark.parametrize(("dtype", "width"), [(torch.int8, 45), (FP8, 45), (INT4, 96), (INT4, 320)])
def test_dequantized_weights_are_the_reference_s(dtype, width):
    quantized = quantize(torch.randn(19, width), dtype=dtype)
    out = dequantize(quantized.q, quantized.scale, torch.float16)
    torch.testing.assert_close(out, reference.dequantize(quantized, torch.float32).half(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("width", [16, 75, 2048])
def test_tokens_are_quantized_as_the_reference_does(width):
    torch.manual_seed(0)
    x = (torch.randn(9, width) * torch.logspace(-3, 4, 9)[:, None]).half()
    x[4] = 0
    q, scale = quantize_tokens(x)
    expected, expected_scale = reference.quantize_tokens(x, FP8)
    assert torch.equal(scale, expected_scale)
    # The interpreter does not round what it casts to e4m3; that a GPU does is asserted in tests/gpu.
    assert torch.equal(q.float() == 0, expected.float() == 0) and torch.equal(q.float() < 0, expected.float() < 0)


def test_a_token_that_is_no_number_shows():
    x = torch.ones(3, 32)
    x[0, 5], x[1, 7] = torch.nan, torch.inf
    q, scale = quantize_tokens(x)
    assert (q.float() * scale).isfinite().all(1).tolist() == [False, False, True]


def test_every_shape_has_a_tile_that_covers_it():
    for m, n, k, dtype, int8, gated in itertools.product(
        (1, 2, 16, 33, 64, 65, 4096),
        (8, 576, 4096, 32000),
        (16, 576, 11008),
        (torch.float32, torch.bfloat16),
        (0, 1),
        (0, 1),
    ):
        tile = choose(m, n, k, dtype, torch.int8 if int8 else dtype, bool(gated))
        assert isinstance(tile, MatvecTile) == (m == 1)
        if isinstance(tile, RowsTile):
            assert tile.block_m >= m
