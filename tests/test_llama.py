"""Arithmetic of the architecture, against published sizes and the tensors of a model."""

import pytest
import tiny
from llmstudy import llama
from llmstudy.errors import Unsupported
from llmstudy.fetch.synthetic import SHAPES

# Touvron et al. 2023 (arXiv:2307.09288); the exact counts are those of the published checkpoints.
PUBLISHED = {"llama-2-7b": 6_738_415_616, "llama-2-13b": 13_015_864_320, "llama-2-70b": 68_976_648_192}


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_those_of_the_published_models(name):
    assert llama.Shape.of(SHAPES[name]).parameters == PUBLISHED[name]


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"num_key_value_heads": 4, "head_dim": 32}])
def test_a_shape_counts_the_tensors_of_a_model(changes):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**tiny.SHAPE | changes)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    shape = llama.Shape.of(config)
    assert shape == llama.Shape.of(tiny.SHAPE | changes)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert shape.matmul_weights == sum(linear.weight.numel() for linear in linears)


@pytest.mark.parametrize("missing", ["absent", None])
def test_sizes_that_a_configuration_may_leave_out_are_filled_in(missing):
    """LLaMA 1, Vicuna and OpenLLaMA write neither key."""
    sizes = {key: value for key, value in tiny.SHAPE.items() if key not in ("num_key_value_heads", "head_dim")}
    if missing is None:
        sizes |= {"num_key_value_heads": None, "head_dim": None}
    for config in (sizes, type("Config", (), sizes)):
        shape = llama.Shape.of(config)
        assert (shape.kv_heads, shape.head_dim) == (4, 16)


def test_a_shape_that_is_no_llama_is_refused_by_the_missing_key():
    for config in ({}, type("Config", (), {})):
        with pytest.raises(Unsupported, match="'hidden_size'"):
            llama.Shape.of(config)


def test_causal_attention_is_half_the_square():
    assert llama.causal_attention_flops(32, 128, 1024) == 2 * 32 * 128 * 1024**2
