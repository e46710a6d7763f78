"""Random small models of every architecture: our loader and the library's give the same logits, or ours refuses."""

import copy
import tempfile
from pathlib import Path

import pytest
import torch
from architectures import CONFIGS, EAGER, model_of
from hypothesis import HealthCheck, Phase, configuration, given, settings
from hypothesis import strategies as st
from llmstudy.errors import Unsupported
from llmstudy.fetch.weights import Weights
from llmstudy.kernels.linear import QuantizedLinear
from llmstudy.measure import footprint
from llmstudy.models import loading, precisions
from llmstudy.models.precisions import LoadRequest

configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "hypothesis")
RANDOM = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],  # a smaller model explains no more
    suppress_health_check=list(HealthCheck),
)
IDS = torch.tensor([[5, 9, 60, 31, 7, 8, 19, 3, 44, 21, 9, 7], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]])
# Names under which configurations have the sizes: layers, heads, hidden size, intermediate size.
NAMES = {
    "gpt2": ("n_layer", "n_head", "n_embd", "n_inner"),
    "bloom": ("n_layer", "n_head", "hidden_size", None),
    "opt": ("num_hidden_layers", "num_attention_heads", "hidden_size", "ffn_dim"),
}
USUAL = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size")
BIASES = {
    "llama": ("attention_bias", "mlp_bias"),
    "llama-1": ("attention_bias", "mlp_bias"),
    "gemma": ("attention_bias",),
    "qwen3": ("attention_bias",),
    "gpt-neox": ("attention_bias", "use_parallel_residual"),
    "falcon": ("alibi", "bias", "parallel_attn", "multi_query"),
    "bloom": ("apply_residual_connection_post_layernorm",),
    "phi": ("qk_layernorm",),
}
REFUSED = ("gpt-neox", "mixtral", "qwen3-moe")  # the library converts their tensors while it loads


@st.composite
def models(draw) -> tuple[str, dict]:
    """A name of an architecture and changes of its configuration."""
    name = draw(st.sampled_from(sorted(CONFIGS)))
    layers, heads, hidden, inner = NAMES.get(name, USUAL)
    count, width = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([8, 16, 32]))
    size = count * width
    changes = {layers: draw(st.integers(1, 3)), heads: count, hidden: size, "vocab_size": draw(st.integers(61, 99))}
    if inner:
        changes[inner] = draw(st.integers(1, 9)) * 16
    if "head_dim" in CONFIGS[name][1]:
        changes |= {
            "head_dim": draw(st.sampled_from([8, 16])),
            "num_key_value_heads": draw(st.sampled_from([1, count])),
        }
    if "num_kv_heads" in CONFIGS[name][1]:
        changes["num_kv_heads"] = draw(st.sampled_from([1, count]))
    if "layer_types" in CONFIGS[name][1]:
        kinds = st.sampled_from(["sliding_attention", "full_attention"])
        changes["layer_types"] = draw(st.lists(kinds, min_size=changes[layers], max_size=changes[layers]))
    if "sliding_window" in CONFIGS[name][1]:
        changes["sliding_window"] = draw(st.integers(2, 16))
    if name == "opt":
        changes |= {
            "word_embed_proj_dim": draw(st.sampled_from([size, 16])),
            "do_layer_norm_before": draw(st.booleans()),
        }
    for key in BIASES.get(name, ()):
        changes[key] = draw(st.booleans())
    return name, changes | {"tie_word_embeddings": draw(st.booleans())}


def saved(name: str, changes: dict, folder: str) -> Weights:
    """A model whose norms are no longer those of a new one."""
    model = model_of(name, **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return Weights(name, Path(folder), True, None, 128)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits.float()


def request(weights: Weights, name: str) -> LoadRequest:
    return LoadRequest(weights, "cpu", "eager" if name in EAGER else "sdpa")


@RANDOM
@given(models())
def test_both_loaders_give_the_same_logits_or_ours_refuses(model):
    name, changes = model
    with tempfile.TemporaryDirectory() as folder:
        its = request(saved(name, changes, folder), name)
        library = loading.from_library(its, torch.float32)
        try:
            ours = loading.layer_by_layer(its, torch.float32)
        except Unsupported as refused:
            assert name in REFUSED and "only the library joins them" in str(refused)
            return
        torch.testing.assert_close(logits(ours), logits(library), rtol=0, atol=0)
        assert not any(tensor.is_meta for tensor in (*ours.parameters(), *ours.buffers()))


@RANDOM
@given(models(), st.sampled_from(["int8-fused", "fp8-weight"]))
def test_weights_in_8_bits_are_those_of_the_library_rounded(model, precision):
    """Our model in bf16 differs from the library's with the dequantized weights no more than bf16 from fp32 does."""
    name, changes = model
    with tempfile.TemporaryDirectory() as folder:
        its = request(saved(name, changes, folder), name)
        try:
            ours = precisions.get(precision).load(its)
        except Unsupported as refused:
            assert name in REFUSED and "only the library joins them" in str(refused)
            return
        rounded = loading.from_library(its, torch.bfloat16)
        replaced = 0
        for path, module in ours.named_modules():
            if isinstance(module, QuantizedLinear):
                weight = module.weight.float() * module.scale.float().reshape(-1, 1)
                rounded.get_submodule(path).weight.data = weight.bfloat16()
                replaced += weight.numel()
        exact = logits(copy.deepcopy(rounded).float())
        error = (logits(rounded) - exact).abs().max()
        assert (logits(ours) - exact).abs().max() <= 4 * error + 0.02 * exact.abs().max()
        inside = sum(part.weights for part in footprint.decoder_weights(ours) if part.quantized)
        assert inside <= replaced and (footprint.quantized_share(ours) > 0) == (replaced > 0)
        assert (replaced == 0) == (name == "gpt2")


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "llm-int8", "nf4"])
def test_the_librarys_precisions_are_near_the_model(tmp_path, name, precision):
    """Cosine similarity of logits with those of the model that was saved, in fp32."""
    model = model_of(name)
    model.save_pretrained(tmp_path)
    loaded = precisions.get(precision).load(request(Weights(name, tmp_path, True, None, 128), name))
    floor = {"fp32": 0.999999, "nf4": 0.7, "llm-int8": 0.98}.get(precision, 0.999)
    assert torch.cosine_similarity(logits(loaded).flatten(), logits(model).flatten(), dim=0) > floor
    quantized = precision in ("llm-int8", "nf4") and not name.startswith("falcon")
    whole = name not in ("mixtral", "qwen3-moe", "gpt-oss")
    expected = quantized if whole else pytest.approx(quantized * 0.15, abs=0.06)  # experts stay as they are
    assert footprint.quantized_share(loaded) == expected
