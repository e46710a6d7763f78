"""Bytes of weights and KV cache, against a count by hand for every way of storing linear layers."""

from types import SimpleNamespace

import pytest
import tiny
import torch
from architectures import CONFIGS, WINDOW, model_of
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


# ----------------------------------------------------------------------------------------------- other architectures

# Bytes of one token in one layer's cache, fp32: keys and values of all heads that the class stores, 16 wide.
HEADS = {"llama-1": 4, "phi": 4, "gpt-neox": 4, "gpt2": 4, "opt": 4, "falcon": 1, "falcon-40b": 4, "bloom": 4}
CACHED = {name: [2 * HEADS.get(name, 2) * 16 * 4] * 2 for name in CONFIGS}
# Layers whose attention sees a window of 8 tokens.
WINDOWED = {"mistral": 2, "gemma2": 1, "gemma3": 1, "gpt-oss": 1}
EXPERTS = ("mixtral", "qwen3-moe", "gpt-oss")


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("tokens", [5, 40])
def test_the_cache_counts_the_tokens_that_attention_sees(name, tokens):
    """Against the tensors of the library's cache, which keeps one token less than a window: the next is seen too."""
    model, batch = model_of(name), 3
    with torch.no_grad():
        cache = model(torch.ones(batch, tokens, dtype=torch.int64), use_cache=True).past_key_values
    held = [layer.keys.nbytes + layer.values.nbytes for layer in cache.layers]
    short = WINDOWED.get(name, 0)
    seen = [WINDOW if layer < short and tokens > WINDOW else tokens for layer in range(LAYERS)]
    assert footprint.kv_bytes(model, tokens) == sum(size * count for size, count in zip(CACHED[name], seen))
    lost = [size * batch * (count < tokens) for size, count in zip(CACHED[name], seen)]
    assert [size * count * batch - one for size, count, one in zip(CACHED[name], seen, lost)] == held


def test_a_window_bounds_the_cache_of_mistral():
    """128 + 16 tokens and a window of 32."""
    model = model_of("mistral", sliding_window=32)
    assert footprint.kv_bytes(model, 144) == 2 * 2 * 2 * 16 * 4 * 32 == 16_384


@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_reads_every_weight_but_the_rows_of_tables(name):
    model = model_of(name)
    tables = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    head = model.get_output_embeddings().weight
    looked_up = sum(table.weight.numel() for table in tables if table.weight is not head)
    experts = sum(parameter.numel() for path, parameter in model.named_parameters() if ".experts." in path)
    found = footprint.weight_bytes(model)
    assert footprint.total(found) - sum(found["other"].values()) == pytest.approx(4 * model.num_parameters(), abs=4)
    # one of four experts is read
    assert footprint.step_weight_bytes(model) == 4 * (model.num_parameters() - looked_up - experts * 3 // 4)
    assert (experts > 0) == (name in EXPERTS)


@pytest.mark.parametrize("name", CONFIGS)
def test_operations_are_those_that_the_profiler_of_torch_counts(name):
    """One token without a cache attends to itself alone."""
    from torch.utils.flop_counter import FlopCounterMode

    model = model_of(name)
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")  # the counter knows no grouped products
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.tensor([[5]]), use_cache=False)
    assert footprint.step_flops(model, 1) == pytest.approx(counter.get_total_flops(), rel=0.02)
    heads = 2 * 4 * 32 * LAYERS
    assert footprint.step_flops(model, 5) - footprint.step_flops(model, 1) == heads * 4


@pytest.mark.parametrize("name", CONFIGS)
def test_the_share_of_a_dense_model_is_nothing(name):
    assert footprint.quantized_share(model_of(name)) == 0
    assert sum(part.weights for part in footprint.decoder_weights(model_of(name))) > 0


def test_experts_of_an_unknown_number_are_unsupported():
    model = model_of("mixtral")
    model.config = SimpleNamespace(model_type="mixtral", num_local_experts=4)
    with pytest.raises(Unsupported, match="model type 'mixtral' has experts"):
        footprint.step_weight_bytes(model)


@pytest.mark.parametrize("name", ["mixtral", "gpt2"])
def test_weights_of_no_linear_layer_are_named(name):
    with pytest.raises(Unsupported, match="0.* is no linear layer"):
        list(footprint.decoder_linears(model_of(name)))


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
