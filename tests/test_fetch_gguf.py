"""GGUF files: rotary positions of every kind, split files, several files, and what cannot be read rightly."""

import json
import math
import types

import numpy
import pytest
import tiny
import torch
from fetch_toolkit import entry, one_line, write_model_gguf
from llmstudy.fetch.dequantize import choose
from llmstudy.fetch.models import fetch_weights
from llmstudy.fetch.rope import restore
from llmstudy.fetch.weights import open_weights
from transformers import AutoConfig, AutoModelForCausalLM

THETA, PAIRS = 10000.0, 8  # of the tiny model: 16 dimensions of a head
PLAIN = THETA ** (-numpy.arange(PAIRS) / PAIRS)
TOKENS = torch.arange(200)[None] * 7 % tiny.VOCABULARY


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("original"))


@pytest.fixture
def fetch(tmp_path):
    """Fetch a folder or file; return the folder of the dequantized model."""

    def fetch(folder, context=None, **source):
        source = {"type": "path", "folder": str(folder)} | source
        fetch_weights(entry(source, context=context), tmp_path / "ours", tmp_path / "downloads")
        return tmp_path / "ours"

    return fetch


def logits(model, tokens=TOKENS):
    with torch.inference_mode():
        return model(tokens).logits


def rotated(model, frequencies, attention: float):
    """Logits of the model with other rotary frequencies and another factor of sine and cosine."""
    embedding = model.model.rotary_emb
    before = embedding.inv_freq, embedding.attention_scaling
    embedding.inv_freq, embedding.attention_scaling = torch.tensor(frequencies, dtype=torch.float32), attention
    try:
        return logits(model)
    finally:
        embedding.inv_freq, embedding.attention_scaling = before


def yarn(factor: float, original: int, fast: float = 32.0, slow: float = 1.0):
    """YaRN as its paper has it (sections 3.2 and 3.4, in turns over the original context), bounds rounded outwards."""
    pair = [PAIRS * math.log(original / (2 * math.pi * turns)) / math.log(THETA) for turns in (fast, slow)]
    low, high = max(math.floor(pair[0]), 0), math.ceil(pair[1])
    interpolated = numpy.clip((numpy.arange(PAIRS) - low) / (high - low), 0, 1)
    return PLAIN * (1 - interpolated + interpolated / factor), 1 + 0.1 * math.log(factor)


def llama3(factor: float, original: int, low: float = 1.0, high: float = 4.0, theta: float = THETA, pairs: int = PAIRS):
    """Divisors of Llama 3.1, from wavelengths."""
    turns = original * theta ** (-numpy.arange(pairs) / pairs) / (2 * math.pi)
    kept = numpy.clip((turns - low) / (high - low), 0, 1)
    return (1 / (kept + (1 - kept) / factor)).astype(numpy.float32)


ODD = numpy.linspace(1, 3, PAIRS).astype(numpy.float32)
# keys below llama.rope, tensors, frequencies, factor of sine and cosine, rope_type in config.json
ROPES = {
    "no scaling": ({}, {}, PLAIN, 1.0, "default"),
    "another base": ({"freq_base": 500.0}, {}, 500.0 ** (-numpy.arange(PAIRS) / PAIRS), 1.0, "default"),
    "type none": ({"scaling.type": "none", "scaling.factor": 4.0}, {}, PLAIN, 1.0, "default"),
    "linear": ({"scaling.type": "linear", "scaling.factor": 4.0}, {}, PLAIN / 4, 1.0, "linear"),
    "a factor without type": ({"scaling.factor": 4.0}, {}, PLAIN / 4, 1.0, "linear"),
    "the old key": ({"scale_linear": 2.0}, {}, PLAIN / 2, 1.0, "linear"),
    "yarn": (
        {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 64},
        {}, *yarn(4.0, 64), "yarn",
    ),
    "yarn with betas": (
        {"scaling.type": "yarn", "scaling.factor": 8.0, "scaling.original_context_length": 128,
         "scaling.yarn_beta_fast": 16.0, "scaling.yarn_beta_slow": 2.0},
        {}, *yarn(8.0, 128, 16.0, 2.0), "yarn",
    ),
    "yarn, attention scaled": (
        {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 64,
         "scaling.attn_factor": 0.5},
        {}, yarn(4.0, 64)[0], yarn(4.0, 64)[1] / 2, "yarn",
    ),
    "divisors of Llama 3": ({}, {"rope_freqs.weight": llama3(8.0, 8192)}, PLAIN / llama3(8.0, 8192), 1.0, "llama3"),
    "divisors of another original context": (
        {}, {"rope_freqs.weight": llama3(32.0, 64)}, PLAIN / llama3(32.0, 64), 1.0, "longrope",
    ),
    "any divisors": ({}, {"rope_freqs.weight": ODD}, PLAIN / ODD, 1.0, "longrope"),
    "divisors and linear": ({"scaling.factor": 2.0}, {"rope_freqs.weight": ODD}, PLAIN / ODD / 2, 1.0, "longrope"),
    "attention scaled": ({"scaling.attn_factor": 1.5}, {}, PLAIN, 1.5, "longrope"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ROPES)
def test_a_gguf_computes_with_the_rope_that_it_names(tmp_path, llama, fetch, kind):
    keys, tensors, frequencies, attention, rope_type = ROPES[kind]
    write_model_gguf(tmp_path / "tiny.gguf", llama, {f"rope.{key}": value for key, value in keys.items()}, tensors)
    config = open_weights(ours := fetch(tmp_path / "tiny.gguf")).config()
    assert config.rope_parameters["rope_type"] == rope_type
    found = logits(AutoModelForCausalLM.from_pretrained(ours, dtype=torch.float32))
    torch.testing.assert_close(found, rotated(llama, frequencies, attention), rtol=1e-4, atol=1e-4)
    if kind not in ("no scaling", "type none"):
        assert (found - logits(llama)).abs().max() > 0.05


@pytest.mark.parametrize(("tokens", "divisors"), [(60, ODD), (200, ODD[::-1] * 2)])
def test_long_and_short_divisors_are_those_of_the_length(tmp_path, llama, fetch, tokens, divisors):
    keys = {"rope.scaling.original_context_length": 64, "rope.scaling.attn_factor": 1.25}
    tensors = {"rope_factors_short.weight": ODD, "rope_factors_long.weight": ODD[::-1] * 2}
    write_model_gguf(tmp_path / "tiny.gguf", llama, keys, tensors)
    found = logits(AutoModelForCausalLM.from_pretrained(fetch(tmp_path / "tiny.gguf")), TOKENS[:, :tokens])
    expected = rotated(llama, PLAIN / divisors, 1.25)[:, :tokens]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("keys", "tensors", "expected"),
    [
        ({"rope.scaling.yarn_log_multiplier": 0.1}, {}, "rope.scaling.yarn_log_multiplier is not known here"),
        ({"rope.scaling.type": "ntk"}, {}, "rope.scaling.type 'ntk' cannot be read"),
        ({"rope.scaling.type": "longrope"}, {}, "rope.scaling.type 'longrope' cannot be read"),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.yarn_attn_factor": 1.0},
            {},
            "rope.scaling.yarn_attn_factor 1.0 is the factor itself to some programs",
        ),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.yarn_ext_factor": 0.5},
            {},
            "rope.scaling.yarn_ext_factor 0.5 is not",
        ),
        ({}, {"rope_freqs.weight": ODD[:4]}, "4 divisors of 8 rotary frequencies"),
        ({"rope.freq_base_swa": 5e5}, {}, "rope.freq_base_swa is not known to LlamaForCausalLM"),
        ({}, {"blk.1.attn_q.bias": ODD}, "no place for 1 tensors of this GGUF file, blk.1.attn_q.bias among them"),
    ],
)
def test_what_transformers_would_compute_differently_is_refused_by_name(
    tmp_path, llama, fetch, keys, tensors, expected
):
    write_model_gguf(tmp_path / "tiny.gguf", llama, keys, tensors)
    with one_line(f"tiny.gguf: {expected}" if not expected.startswith("no place") else expected):
        fetch(tmp_path / "tiny.gguf")
    assert not (tmp_path / "ours/manifest.json").exists()


def test_an_architecture_that_transformers_does_not_know_is_one_line(tmp_path, llama, fetch):
    write_model_gguf(tmp_path / "tiny.gguf", llama, name="plamo3")
    with one_line("GGUF model with architecture plamo3 is not supported yet"):
        fetch(tmp_path / "tiny.gguf")


@pytest.mark.parametrize(
    ("factor", "context", "message"),
    [(4.0, 256, None), (4.0, 257, "context 257 is longer than the model's 256 tokens"), (8.0, 512, None)],
)
def test_a_context_up_to_the_length_that_yarn_scales_to_is_accepted(tmp_path, llama, fetch, factor, context, message):
    llama.config.max_position_embeddings = 64
    try:
        keys = {"rope.scaling.type": "yarn", "rope.scaling.factor": factor, "rope.scaling.original_context_length": 64}
        write_model_gguf(tmp_path / "tiny.gguf", llama, keys)
    finally:
        llama.config.max_position_embeddings = 256
    if message:
        with one_line(message):
            fetch(tmp_path / "tiny.gguf", context)
        return
    weights = open_weights(fetch(tmp_path / "tiny.gguf", context))
    assert (weights.context, weights.tokenizer.model_max_length) == (context, context)


def test_a_split_file_is_the_whole_model(tmp_path, llama, fetch):
    parts = write_model_gguf(tmp_path / "Tiny.gguf", llama, split=3)
    for wanted in ({"folder": tmp_path}, {"folder": parts[1]}, {"folder": tmp_path, "file": parts[2].name}):
        ours = fetch(**wanted)
        assert {path.suffix for path in ours.iterdir()} == {".json", ".safetensors"}
        torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(ours)), logits(llama))
    parts[1].rename(tmp_path / "elsewhere")
    with one_line("Tiny has 00003 parts, here are 2: Tiny-00001-of-00003.gguf, Tiny-00003-of-00003.gguf"):
        fetch(tmp_path)


@pytest.mark.parametrize("name", ["q4 [x]*?", "{b} ü%20", "-$HOME"])
def test_a_path_is_taken_literally_and_what_a_killed_fetch_left_is_deleted(tmp_path, llama, fetch, name):
    (tmp_path / name).mkdir()
    (tmp_path / "ours/.save-x").mkdir(parents=True)
    write_model_gguf(tmp_path / name / f"{name}.GGUF", llama)
    for given in (tmp_path / name, tmp_path / name / f"{name}.GGUF"):
        assert open_weights(fetch(given)).context == 256
    assert not (tmp_path / "ours/.save-x").exists()


@pytest.mark.parametrize(
    ("names", "wanted", "found"),
    [
        (["a.gguf", "config.json"], None, ["a.gguf"]),
        (["A.GGUF", "mmproj-model-f16.gguf", "a-MMPROJ.GGUF"], None, ["A.GGUF"]),
        (["a.gguf", "b.gguf"], "b.gguf", ["b.gguf"]),
        (["a.gguf", "b.gguf"], None, "holds 2 GGUF models; choose one with the source's key file: a.gguf, b.gguf"),
        (["a.gguf"], "b.gguf", "no file 'b.gguf' (key file); it holds a.gguf"),
        (["a.txt"], "a.txt", "'a.txt' (key file) is not a GGUF file"),
        (["q/a-00002-of-00002.gguf", "q/a-00001-of-00002.gguf", "b.gguf"], "q/a-00002-of-00002.gguf",
         ["q/a-00001-of-00002.gguf", "q/a-00002-of-00002.gguf"]),
        (["a-00001-of-00002.GGUF"], None, "a has 00002 parts, here are 1: a-00001-of-00002.GGUF"),
        (["model.safetensors"], None, []),
    ],
)  # fmt: skip
def test_the_gguf_file_to_read_is_chosen_or_named(names, wanted, found):
    if isinstance(found, list):
        assert choose(names, wanted, "here") == found
    else:
        with one_line(f"here: {found}"):
            choose(names, wanted, "here")


class Reader:
    """What ``restore`` asks of a GGUF reader, without a file."""

    def __init__(self, architecture: str, **keys):
        self.contents = {"general.architecture": architecture} | {
            f"{architecture}.rope.{k}": v for k, v in keys.items()
        }
        self.fields = {name: self.get_field(name) for name in self.contents}
        self.tensors = []

    def get_field(self, name: str):
        return types.SimpleNamespace(contents=lambda: self.contents[name])


SIZES = {"vocab_size": 8, "hidden_size": 64, "intermediate_size": 8, "num_hidden_layers": 6, "num_attention_heads": 4,
         "num_key_value_heads": 2, "pad_token_id": 0}  # fmt: skip


@pytest.mark.parametrize(
    ("model_type", "keys", "buffer", "frequencies"),
    [
        ("qwen2", {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 64}, "inv_freq",
         yarn(4.0, 64)[0]),
        ("stablelm", {"dimension_count": 8, "freq_base": 500.0}, "inv_freq", 500.0 ** (-numpy.arange(4) / 4)),
        ("stablelm", {"dimension_count": 16}, "inv_freq", PLAIN),
        ("phi3", {"dimension_count": 12}, "inv_freq", THETA ** (-numpy.arange(6) / 6)),
        ("gemma3_text", {"freq_base": 1e6, "scaling.factor": 8.0}, "full_attention_inv_freq",
         1e6 ** (-numpy.arange(8) / 8) / 8),
        ("gemma3_text", {"freq_base": 1e6, "freq_base_swa": 500.0}, "sliding_attention_inv_freq",
         500.0 ** (-numpy.arange(8) / 8)),
        ("llama", {"dimension_count": 8}, None, "LlamaForCausalLM of transformers cannot compute the rotary positions"),
        ("gpt2", {"scaling.factor": 2.0}, None, "scales rotary positions, which GPT2LMHeadModel has not"),
        ("gpt2", {}, None, ""),
    ],
)  # fmt: skip
def test_every_architecture_gets_the_rope_of_its_file_or_is_refused(model_type, keys, buffer, frequencies):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, head_dim=16, **SIZES))
    if isinstance(frequencies, str) and frequencies:
        with one_line(frequencies):
            restore(Reader(model_type, **keys), model, "a.gguf")
        return
    restore(Reader(model_type, **keys), model, "a.gguf")
    if buffer:
        again = AutoConfig.for_model(**json.loads(model.config.to_json_string()))
        found = getattr(AutoModelForCausalLM.from_config(again).model.rotary_emb, buffer)
        numpy.testing.assert_allclose(found.numpy(), frequencies, rtol=1e-5)
