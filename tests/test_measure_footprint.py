"""Bytes of weights and KV cache, against a count by hand for every way of storing linear layers."""

from types import SimpleNamespace

import pytest
import tiny
import torch
from llmstudy.errors import Unsupported
from llmstudy.fetch.weights import open_weights
from llmstudy.measure import footprint
from llmstudy.models import precisions
from tensor_subclass import make_linear

HIDDEN, FEED_FORWARD, LAYERS, KV = 64, 128, 2, 32
# elements of the linear layers of one decoder layer: q, k, v, o, gate, up, down
LINEARS = [HIDDEN * HIDDEN, KV * HIDDEN, KV * HIDDEN, HIDDEN * HIDDEN] + 3 * [FEED_FORWARD * HIDDEN]
OUTPUTS = [HIDDEN, KV, KV, HIDDEN, FEED_FORWARD, FEED_FORWARD, HIDDEN]
EMBEDDING = tiny.VOCABULARY * HIDDEN
NORMS = (2 * LAYERS + 1) * HIDDEN


@pytest.fixture
def load(tiny_weights):
    def load(precision: str, folder=tiny_weights):
        request = precisions.LoadRequest(open_weights(folder), "cpu", "sdpa")
        return precisions.get(precision).load(request)

    return load


@pytest.mark.parametrize(("precision", "size", "dtype"), [("fp32", 4, "float32"), ("bf16", 2, "bfloat16")])
def test_dense_weights(load, precision, size, dtype):
    model = load(precision)
    found = footprint.weight_bytes(model)
    assert found["embeddings"] == found["head"] == {dtype: size * EMBEDDING}
    assert found["linears"] == {dtype: size * LAYERS * sum(LINEARS)}
    assert found["norms"] == {dtype: size * NORMS}
    # the frequencies of the rotary embedding, and transformers' copy of them
    assert set(found["other"]) == {"float32"} and found["other"]["float32"] <= 2 * 8 * 4
    assert footprint.total(found) == sum(sum(counts.values()) for counts in found.values())
    assert footprint.total(found, "norms", "head") == size * (NORMS + EMBEDDING)
    # a decode step reads all but the embedding
    assert footprint.step_weight_bytes(model) == size * (LAYERS * sum(LINEARS) + NORMS + EMBEDDING)


@pytest.mark.parametrize("precision", ["llm-int8", "llm-int8-t0"])
def test_int8_weights_have_a_scale_a_row(load, precision):
    found = footprint.weight_bytes(load(precision))
    assert found["linears"] == {"int8": LAYERS * sum(LINEARS), "float32": 4 * LAYERS * sum(OUTPUTS)}
    assert found["embeddings"] == found["head"] == {"bfloat16": 2 * EMBEDDING}
    assert found["norms"] == {"bfloat16": 2 * NORMS}


@pytest.mark.parametrize("precision", ["bf16", "llm-int8", "nf4"])
def test_a_forward_pass_adds_nothing(load, precision):
    """bitsandbytes moves its state at the first forward pass, and packs it anew on some CPUs (absmax in 16 bit)."""
    model = load(precision)
    before = footprint.weight_bytes(model)
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]))
    after = footprint.weight_bytes(model)
    for component in footprint.COMPONENTS:
        assert sum(after[component].values()) <= sum(before[component].values())
    for packed in ("int8", "uint8"):
        assert after["linears"].get(packed) == before["linears"].get(packed)


@pytest.mark.parametrize("precision", ["nf4", "fp4"])
def test_4_bit_weights_have_an_absmax_a_block_and_a_table_a_linear(load, precision):
    found = footprint.weight_bytes(load(precision))
    linears = LAYERS * len(LINEARS)
    packed, absmax, table = LAYERS * sum(LINEARS) // 2, 4 * LAYERS * sum(LINEARS) // 64, 4 * 16
    assert found["linears"]["uint8"] == packed
    # the table of 16 values may be shared by all linear layers
    assert found["linears"]["float32"] - absmax in (table, table * linears)


def test_tied_embeddings_count_once(load, tmp_path):
    tiny.save_model(tmp_path / "source", tie_word_embeddings=True)
    folder = tiny.fetch({"type": "path", "folder": str(tmp_path / "source")}, tmp_path / "model")
    for precision, size in [("fp32", 4), ("llm-int8", 2)]:
        model = load(precision, folder)
        found = footprint.weight_bytes(model)
        assert sum(found["embeddings"].values()) == size * EMBEDDING and found["head"] == {}
        # a decode step reads the head, which is the embedding, whole
        linears_and_norms = footprint.total(found, "linears", "norms")
        assert footprint.step_weight_bytes(model) == linears_and_norms + size * EMBEDDING


def test_synthetic_weights_count_like_real_ones(load, tiny_weights, tmp_path):
    folder = tiny.fetch(tiny.synthetic(), tmp_path / "model")
    for precision in ("bf16", "llm-int8", "nf4"):
        real, random = (footprint.weight_bytes(load(precision, source)) for source in (tiny_weights, folder))
        assert real == random


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kv_formula_is_the_librarys_cache(kv_heads, dtype):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**(tiny.SHAPE | {"num_key_value_heads": kv_heads, "num_hidden_layers": 3}))
    check_kv_formula(LlamaForCausalLM(config).to(dtype).eval(), 2 * 3 * kv_heads * 16 * dtype.itemsize)


def check_kv_formula(model, expected: int):
    batch, tokens = 3, 11
    with torch.no_grad():
        cache = model(torch.ones(batch, tokens, dtype=torch.int64), use_cache=True).past_key_values
    held = sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))
    assert footprint.kv_bytes_per_token(model) == expected
    assert held == expected * batch * tokens


# ----------------------------------------------------------------------------------------------- other architectures

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "vocab_size": 320, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 1}  # fmt: skip
GROUPED = SHAPE | {"num_key_value_heads": 2, "num_local_experts": 4, "head_dim": 16}
BIASES = {"phi": 4 * 64 + 128 + 64, "gpt_neox": 192 + 64 + 128 + 64}


def model_of(kind: str, **changes):
    """A model of another architecture, its linear layers called ``dense, fc1, fc2``, ``query_key_value``, …"""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    settings = (GROUPED if kind in ("mixtral", "gpt_oss") else SHAPE) | changes
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**settings)).float().eval()


@pytest.mark.parametrize("kind", ["phi", "gpt_neox"])
def test_linear_layers_of_any_name_count(kind):
    model = model_of(kind)
    found = footprint.weight_bytes(model)
    layer = 4 * HIDDEN * HIDDEN + 2 * FEED_FORWARD * HIDDEN + BIASES[kind]
    assert found["linears"] == {"float32": 4 * LAYERS * layer}
    assert footprint.total(found) == 4 * model.num_parameters() + sum(found["other"].values())
    assert footprint.step_weight_bytes(model) == 4 * (model.num_parameters() - EMBEDDING)
    names = {"phi": ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"]}.get(
        kind, ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
    )
    linears = list(footprint.decoder_linears(model))
    assert [(linear.layer, linear.name) for linear in linears] == [(layer, name) for layer in (0, 1) for name in names]
    check_kv_formula(model, 2 * 2 * 4 * 16 * 4)  # as many key-value heads as heads


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_experts_count_and_a_step_reads_those_of_one_token(kind):
    model = model_of(kind, num_experts_per_tok=1)
    found = footprint.weight_bytes(model)
    parameters = model.num_parameters()
    outside = sum(parameter.numel() for name, parameter in model.named_parameters() if ".experts." not in name)
    assert footprint.total(found, "linears") == 4 * (parameters - 2 * EMBEDDING - NORMS)
    assert footprint.step_weight_bytes(model) == 4 * (outside - EMBEDDING + (parameters - outside) // 4)
    with pytest.raises(Unsupported, match="layers.0.* is no linear layer"):
        list(footprint.decoder_linears(model))


def test_experts_of_an_unknown_number_are_unsupported():
    model = model_of("mixtral")
    model.config = SimpleNamespace(model_type="mixtral", num_local_experts=4)
    with pytest.raises(Unsupported, match="model type 'mixtral' has experts"):
        footprint.step_weight_bytes(model)


def test_weights_that_are_a_tensor_subclass_count_as_what_they_wrap(load):
    model = load("fp32")
    for linear in footprint.decoder_linears(model):
        linear.module.weight = make_linear(linear.module.weight.data, None).weight
    assert footprint.weight_bytes(model)["linears"] == {
        "int8": LAYERS * sum(LINEARS),
        "float32": 4 * LAYERS * sum(OUTPUTS),  # a scale a row
    }
    step = LAYERS * (sum(LINEARS) + 4 * sum(OUTPUTS)) + 4 * (NORMS + EMBEDDING)
    assert footprint.step_weight_bytes(model) == step
