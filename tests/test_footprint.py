"""Bytes of weights and KV cache, against a count by hand for every way of storing linears."""

import pytest
import tiny
import torch
from llmstudy.fetch.weights import open_weights
from llmstudy.measure import footprint
from llmstudy.models import precisions

HIDDEN, FEED_FORWARD, LAYERS, KV = 64, 128, 2, 32
# elements of the linears of one layer: q, k, v, o, gate, up, down
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
    found = footprint.weight_bytes(load(precision))
    assert found["embeddings"] == found["head"] == {dtype: size * EMBEDDING}
    assert found["linears"] == {dtype: size * LAYERS * sum(LINEARS)}
    assert found["norms"] == {dtype: size * NORMS}
    # the frequencies of the rotary embedding, and transformers' copy of them
    assert set(found["other"]) == {"float32"} and found["other"]["float32"] <= 2 * 8 * 4
    assert footprint.total(found) == sum(sum(counts.values()) for counts in found.values())
    assert footprint.total(found, "norms", "head") == size * (NORMS + EMBEDDING)


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
    # the table of 16 values may be shared by all linears
    assert found["linears"]["float32"] - absmax in (table, table * linears)


def test_tied_embeddings_count_once(load, tmp_path):
    tiny.save_model(tmp_path / "source", tie_word_embeddings=True)
    folder = tiny.fetch({"type": "path", "folder": str(tmp_path / "source")}, tmp_path / "model")
    for precision, size in [("fp32", 4), ("llm-int8", 2)]:
        found = footprint.weight_bytes(load(precision, folder))
        assert sum(found["embeddings"].values()) == size * EMBEDDING and found["head"] == {}
        # a decode step reads the head, which is the embedding, whole
        linears_and_norms = footprint.total(found, "linears", "norms")
        assert footprint.step_weight_bytes(None, found) == linears_and_norms + size * EMBEDDING


def test_a_step_reads_all_but_the_embedding(load):
    found = footprint.weight_bytes(load("bf16"))
    assert footprint.step_weight_bytes(None, found) == 2 * (LAYERS * sum(LINEARS) + NORMS + EMBEDDING)


def test_synthetic_weights_count_like_real_ones(load, tiny_weights, tmp_path):
    folder = tiny.fetch(tiny.synthetic(), tmp_path / "model")
    for precision in ("bf16", "llm-int8", "nf4"):
        real, random = (footprint.weight_bytes(load(precision, one)) for one in (tiny_weights, folder))
        assert real == random


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kv_formula_is_the_librarys_cache(kv_heads, dtype):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**(tiny.SHAPE | {"num_key_value_heads": kv_heads, "num_hidden_layers": 3}))
    model = LlamaForCausalLM(config).to(dtype).eval()
    batch, tokens = 3, 11
    with torch.no_grad():
        cache = model(torch.ones(batch, tokens, dtype=torch.int64), use_cache=True).past_key_values
    held = sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))
    assert held == footprint.kv_bytes_per_token(config, dtype) * batch * tokens
    assert footprint.kv_bytes_per_token(config, dtype) == 2 * 3 * kv_heads * 16 * dtype.itemsize


def test_the_kv_formula_without_a_head_size_in_the_config():
    config = type("Config", (), tiny.SHAPE | {"head_dim": None})
    assert footprint.kv_bytes_per_token(config, torch.float16) == 2 * 2 * 2 * (64 // 4) * 2


@pytest.mark.parametrize(
    ("path", "component"),
    [
        ("model.embed_tokens", "embeddings"),
        ("lm_head", "head"),
        ("model.norm", "norms"),
        ("model.layers.3.input_layernorm", "norms"),
        ("model.layers.3.self_attn.q_proj", "linears"),
        ("model.layers.3.mlp.down_proj", "linears"),
        ("model.rotary_emb", "other"),
        ("", "other"),
    ],
)
def test_components(path, component):
    assert footprint.component_of(path, None) == component
