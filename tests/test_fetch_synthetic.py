"""Seeded random weights: the same on their own, in any order, and from files."""

import pytest
from fetch_toolkit import entry, manifest, one_line
from llmstudy.fetch import synthetic
from llmstudy.fetch.models import fetch_weights
from llmstudy.fetch.weights import open_weights

SHAPE = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip


def random(shape=SHAPE, seed=1, write=False) -> dict:
    return entry({"type": "synthetic", "shape": shape, "seed": seed, "write": write})


def test_synthetic_parameters_do_not_depend_on_order_or_neighbours(tmp_path):
    import torch

    fetch_weights(random(), tmp_path / "a", tmp_path / "downloads")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"config.json", "manifest.json"}
    weights = open_weights(tmp_path / "a")
    assert (weights.real, weights.seed, weights.tokenizer, weights.context) == (False, 1, None, 64)
    shapes = synthetic.parameter_shapes(weights.config())
    forward = {name: weights.tensor(name, shape, torch.float32, "cpu") for name, shape in shapes.items()}
    torch.manual_seed(5)
    for name, shape in reversed(shapes.items()):
        again = open_weights(tmp_path / "a").tensor(name, shape, torch.bfloat16, "cpu")
        assert torch.equal(again, forward[name].bfloat16()), name
    fetch_weights(random(seed=2), tmp_path / "b", tmp_path / "downloads")
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(open_weights(tmp_path / "b").tensor(name, (80, 64), torch.float32, "cpu"), forward[name])
    assert not torch.equal(forward[name], forward[name.replace("layers.0", "layers.1")])
    assert torch.equal(forward["model.norm.weight"], torch.ones(64))
    drawn = torch.cat([tensor.flatten() for name, tensor in forward.items() if not name.endswith("norm.weight")])
    # six standard errors of the mean and of the deviation of N(0, 0.02²)
    assert abs(drawn.mean().item()) < 6 * 0.02 / len(drawn) ** 0.5
    assert abs(drawn.std().item() / 0.02 - 1) < 6 / (2 * len(drawn)) ** 0.5


def test_synthetic_blocks_join_without_a_seam(monkeypatch):
    import torch

    monkeypatch.setattr(synthetic, "BLOCK", 1000)
    tensor = synthetic.random_tensor("x.weight", (7, 1001), torch.float32, "cpu", 0, 1.0)
    assert len(tensor.unique()) > 0.99 * tensor.numel()


def test_synthetic_tied_head_is_the_embedding(tmp_path):
    import torch

    fetch_weights(random(SHAPE | {"tie_word_embeddings": True}), tmp_path / "a", tmp_path / "downloads")
    weights = open_weights(tmp_path / "a")
    head, embedding = (
        weights.tensor(name, (96, 64), torch.float32, "cpu") for name in ("lm_head.weight", "model.embed_tokens.weight")
    )
    assert torch.equal(head, embedding)


def test_written_synthetic_weights_are_those_drawn(tmp_path, monkeypatch):
    import torch
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(synthetic, "SHARD_BYTES", 30_000)
    fetch_weights(random(), tmp_path / "drawn", tmp_path / "downloads")
    fetch_weights(random(write=True), tmp_path / "written", tmp_path / "downloads")
    assert len(list((tmp_path / "written").glob("model-*.safetensors"))) > 2
    weights = open_weights(tmp_path / "drawn")
    loaded, info = AutoModelForCausalLM.from_pretrained(
        open_weights(tmp_path / "written").folder, dtype=torch.bfloat16, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, weights.tensor(name, tuple(parameter.shape), torch.bfloat16, "cpu")), name
    assert (
        manifest(tmp_path / "written")["parameters"]
        == manifest(tmp_path / "drawn")["parameters"]
        == loaded.num_parameters()
    )


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("llama-2-7b", 6_738_415_616), ("llama-2-13b", 13_015_864_320), ("llama-2-70b", 68_976_648_192)],
)
def test_named_shapes_have_the_published_number_of_parameters(tmp_path, name, parameters):
    fetch_weights(random(name), tmp_path, tmp_path / "downloads")
    assert manifest(tmp_path)["parameters"] == parameters
    assert manifest(tmp_path)["context"] == 4096


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("llama-3", "'llama-3' is unknown; allowed are llama-2-7b, llama-2-13b, llama-2-70b"),
        ({"hiden_size": 64}, "'hiden_size' is not a key of LlamaConfig"),
        ({"hidden_size": 65, "num_attention_heads": 4}, "hidden size (65) is not a multiple"),
        (SHAPE | {"num_key_value_heads": 3}, "not a multiple of num_key_value_heads"),
    ],
)
def test_impossible_shapes(tmp_path, shape, expected):
    with one_line(expected):
        fetch_weights(random(shape), tmp_path / "a", tmp_path / "downloads")
