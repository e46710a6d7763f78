"""The sweep over tiles: what it tries. What it measures needs a GPU."""

import pytest

pytest.importorskip("triton", reason="triton is not installed: pip install triton==3.7.1")
import sweep_tiles as sweep  # noqa: E402


def test_the_linears_of_a_layer_hold_its_weights():
    """Llama 2 70B: 64 heads of 128 and 8 of keys and values, 8192 wide, 28672 inside."""
    by_name = {layer.name: (layer.rows, layer.in_features) for layer in sweep.linears("llama-2-70b")}
    assert by_name == {
        "q, k, v": (64 * 128 + 2 * 8 * 128, 8192),
        "output": (8192, 8192),
        "gate, up": (2 * 28672, 8192),
        "down": (8192, 28672),
    }


@pytest.mark.parametrize("stored", sweep.DTYPES)
@pytest.mark.parametrize("shape", ["llama-2-7b", "llama-2-13b", "llama-2-70b"])
def test_the_present_choice_and_others_that_waste_little_are_tried(shape, stored):
    for layer in sweep.linears(shape):
        present, *others = sweep.candidates(layer, stored)
        dtype = sweep.DTYPES[stored]
        chosen = sweep.choose(1, layer.n_out, layer.in_features, sweep.torch.bfloat16, dtype, layer.gated)
        assert present == chosen and len(others) >= 4 and present not in others
        for tile in others:
            padded = -(-layer.in_features // tile.block_k) * tile.block_k
            assert padded <= 1.5 * layer.in_features
            assert tile.block_n * padded >= 16 * 32 * tile.warps  # each thread loads at least 16 weights a round
