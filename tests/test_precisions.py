"""Precisions: the registry, both ways to load, synthetic weights, and what becomes of the linear layers."""

import dataclasses
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from llmstudy.errors import StudyError, Unsupported
from llmstudy.fetch.weights import open_weights
from llmstudy.kernels.linear import QuantizedLinear
from llmstudy.measure import footprint
from llmstudy.models import loading, precisions
from llmstudy.models.precisions.int8 import THRESHOLD, find_outlier_columns
from llmstudy.report.study import fact
from llmstudy.runtimes.generate import GenerateRuntime
from llmstudy.runtimes.graph import GraphRuntime
from llmstudy.runtimes.graph.weights import UnfusedLinear

MEMBERS = ["llm-int8-t0", "llm-int8-t0.5", "llm-int8-t2", "llm-int8-t6", "llm-int8-t10", "llm-int8-tinf"]
BOTH_WAYS = ["fp32", "fp16", "bf16", "llm-int8", "llm-int8-t0", "llm-int8-t2.5", "llm-int8-tinf", "nf4", "fp4"]
OWN = ["int8-fused", "int8-fused-outlier", "int8-w8a8", "fp8", "fp8-weight", "int4-fused", "int4-fused-rtn"]
IDS = torch.tensor([[5, 9, 200, 31, 77, 8, 19]])


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def folder(request, tmp_path_factory):
    """The folder of a fetched model with an outlier column, once with untied and once with tied embeddings."""
    path = tmp_path_factory.mktemp("precisions")
    model = tiny.save_model(path / "source", tie_word_embeddings=request.param)
    with torch.no_grad():  # activations over LLM.int8()'s threshold, so that its decomposition takes part
        for layer in model.model.layers:
            layer.input_layernorm.weight[3] = layer.post_attention_layernorm.weight[3] = 30.0
    model.save_pretrained(path / "source")
    return fetched(path)


def fetched(path):
    """Fetch ``path/source``; return the model's folder."""
    return tiny.fetch({"type": "path", "folder": str(path / "source")}, path / "model")


def load(name, folder, layerwise=False, **changes):
    """Load a model; ``layerwise``: real weights in the way of synthetic ones."""
    weights = open_weights(folder)
    if layerwise:
        parts = {"real": False, "config": weights.config, "tensor": weights.tensor, "attention": weights.attention}
        weights = type("Layerwise", (), parts)()
    request = {"weights": weights, "device": "cpu", "attention": "sdpa", "calibration_ids": IDS}
    return precisions.get(name).load(precisions.LoadRequest(**(request | changes)))


def logits(model):
    with torch.no_grad():
        return model(IDS).logits.float()


# The registry


def contrast(color: str, other: str) -> float:
    """WCAG 2.2, relative luminance of sRGB."""
    levels = []
    for text in (color, other):
        channels = (int(text[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        levels.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)
    return max(levels) / min(levels)


def test_facts_of_every_precision():
    entries = [precisions.get(name) for name in (*precisions.names(), *MEMBERS)]
    assert [entry.name for entry in entries] == [*precisions.names(), *MEMBERS]
    assert len({entry.color for entry in entries}) == len(entries)
    for entry in entries:
        assert entry.title and entry.family in ("dense", "int8", "fp8", "4-bit")
        assert entry.own == (entry.name in OWN)
        of_bitsandbytes = entry.name.startswith("llm-int8") or entry.name in ("nf4", "fp4")
        assert entry.packages == (("bitsandbytes",) if of_bitsandbytes else ())
        assert contrast(entry.color, "#ffffff") >= 4.5  # its name is written in it
        assert bool(entry.how) and entry.own == ("not in a library" in entry.how)


@pytest.mark.parametrize("threshold", [0, 0.25, 2, 8, 20, 100])
def test_near_thresholds_have_different_colors(threshold):
    assert precisions.get(f"llm-int8-t{threshold}").color != precisions.get(f"llm-int8-t{threshold + 1}").color


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("int7", "'int7': not known; allowed: .*llm-int8, .*llm-int8-t<x>"),
        ("llm-int8-t4.0", "'llm-int8-t4.0': .*'llm-int8-t4'"),
        ("llm-int8-t04", "'llm-int8-t4'"),
        ("llm-int8-t0.10", "'llm-int8-t0.1'"),
        ("llm-int8-t-1", "'-1' is no outlier threshold"),
        ("llm-int8-t1e3", "'1e3' is no outlier threshold"),
        ("llm-int8-tnan", "'nan' is no outlier threshold"),
        ("llm-int8-t<x>", "'<x>' is no outlier threshold"),
        ("llm-int8-t", "'' is no outlier threshold"),
    ],
)
def test_a_name_that_is_no_precision_is_refused_in_one_line(name, line):
    with pytest.raises(StudyError, match=line):
        precisions.check(name)


def test_precisions_are_ordered_by_registry_then_threshold():
    assert precisions.in_order(["gone", "nf4", "llm-int8-t10", "llm-int8-tinf", "llm-int8-t2", "llm-int8", "bf16"]) == [
        "bf16", "llm-int8", "llm-int8-t2", "llm-int8-t10", "llm-int8-tinf", "nf4", "gone"
    ]  # fmt: skip


@pytest.fixture
def subclass(monkeypatch):
    """A reader's precision, one file and one line, whose weights are a tensor subclass."""
    monkeypatch.setattr(precisions, "__path__", [*precisions.__path__, str(Path(__file__).parent)])
    monkeypatch.setitem(precisions.MODULES, "int8-subclass", "tensor_subclass")
    return "int8-subclass"


def test_a_precision_of_one_file_and_one_line_with_a_tensor_subclass(subclass, folder):
    assert precisions.names()[-1] == subclass and precisions.in_order([subclass, "bf16"]) == ["bf16", subclass]
    assert precisions.module_of(subclass) == "models.precisions.tensor_subclass"
    assert (fact(subclass, "color"), fact(subclass, "family")) == ("#8a6d3b", "int8")  # what the report draws and sorts
    model = load(subclass, folder)
    linears = 2 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 128)
    assert footprint.weight_bytes(model)["linears"]["int8"] == linears  # the tensors inside, not the type outside
    assert torch.cosine_similarity(logits(model).flatten(), logits(load("fp32", folder)).flatten(), dim=0) > 0.97
    generated = GenerateRuntime(model, 1, IDS.shape[1], 8).generate(IDS).tokens
    before = logits(model)
    graph = GraphRuntime(model, 1, IDS.shape[1], 8)
    graph.prepare()
    assert isinstance(graph.engine.weights.layers[0].qkv, UnfusedLinear) and not graph.engine.weights.fused
    assert torch.equal(graph.generate(IDS).tokens, generated)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)  # the model stays usable


# Loading


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_both_ways_to_load_give_the_same_model(folder, name, monkeypatch):
    library = load(name, folder)
    monkeypatch.setattr(loading, "from_library", None)  # the other way really is another way
    layerwise = load(name, folder, layerwise=True)
    torch.testing.assert_close(logits(layerwise), logits(library), rtol=0, atol=0)
    if threshold := precisions.get(name).threshold:
        assert {model.model.layers[1].mlp.down_proj.state.threshold for model in (library, layerwise)} == {threshold}


def test_the_outlier_decomposition_makes_a_difference_here(folder):
    """Or the comparison of both ways would not see a lost threshold."""
    decomposed, whole, dense = (logits(load(name, folder)) for name in ("llm-int8", "llm-int8-t0", "bf16"))
    assert (decomposed - dense).abs().mean() < 0.8 * (whole - dense).abs().mean()


@pytest.mark.parametrize("name", [*precisions.names(), "llm-int8-t0", "llm-int8-tinf"])
def test_a_model_is_near_the_reference_and_what_its_precision_promises(folder, name):
    """Cosine similarity of logits with fp32's: 4 bits are coarse, but no precision may lose the model."""
    precision, model = precisions.get(name), load(name, folder)
    floor = {"nf4": 0.9, "fp4": 0.85, "int4-fused": 0.9, "int4-fused-rtn": 0.85}.get(
        name, {"int8": 0.97, "fp8": 0.99}.get(precision.family, 0.999)
    )
    reference = logits(load("fp32", folder))
    assert torch.cosine_similarity(logits(model).flatten(), reference.flatten(), dim=0) > floor
    assert not model.training
    dtype = getattr(torch, precision.compute_dtype.replace("auto", "float32"))  # the checkpoint's
    assert model.model.embed_tokens.weight.dtype == model.model.norm.weight.dtype == dtype
    assert type(model.lm_head) is torch.nn.Linear  # the head stays as it is
    tied = model.config.tie_word_embeddings
    assert (model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()) == tied
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())
    own = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    assert len(own) == (2 * 7 if precision.own else 0)


@pytest.mark.parametrize("name", [name for name in precisions.names() if name != "as-published"])
def test_declared_bits_are_those_stored(tmp_path, name):
    """What sizes jobs before anything is loaded, against the bytes of a loaded model; scales come on top."""
    wide = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "initializer_range": 0.02}  # no outliers
    model = load(name, tiny.fetch(tiny.synthetic(**wide), tmp_path / "model"))
    linears = 2 * (256 * (256 + 128 + 128 + 256) + 3 * 256 * 512)
    bits = 8 * footprint.total(footprint.weight_bytes(model), "linears") / linears
    assert precisions.get(name).weight_bits <= bits < 1.1 * precisions.get(name).weight_bits


def test_synthetic_weights_are_the_same_whenever_they_are_made(tmp_path):
    first, again, other = (
        logits(load("bf16", tiny.fetch(tiny.synthetic(seed), tmp_path / name)))
        for name, seed in [("first", 1), ("again", 1), ("other", 2)]
    )
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.allclose(first, other)


@pytest.mark.parametrize("tied", [False, True])
def test_synthetic_weights_are_the_same_under_all_precisions(tmp_path, tied):
    """The quantized model is a rounded version of the dense one, and not of other random weights."""
    folder = tiny.fetch(tiny.synthetic(tie_word_embeddings=tied), tmp_path / "model")
    dense, int8, nf4 = (logits(load(name, folder)).flatten() for name in ("bf16", "llm-int8", "nf4"))
    assert torch.cosine_similarity(dense, int8, dim=0) > 0.99 and torch.cosine_similarity(dense, nf4, dim=0) > 0.9


def test_biases_are_loaded_by_both_ways(tmp_path):
    model = tiny.save_model(tmp_path / "source", attention_bias=True, mlp_bias=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    model.save_pretrained(tmp_path / "source")
    folder = fetched(tmp_path)
    torch.testing.assert_close(logits(load("fp32", folder)), logits(model))
    for name in ("llm-int8", "nf4"):
        torch.testing.assert_close(logits(load(name, folder, layerwise=True)), logits(load(name, folder)))


def test_scaled_rotary_frequencies_are_computed_again(tmp_path):
    """A model built on the meta device has none; Llama 3's are not those of a plain model."""
    bands = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    scaling = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0} | bands
    model = tiny.save_model(tmp_path / "source", rope_parameters=scaling)
    layerwise = load("fp32", fetched(tmp_path), layerwise=True)
    torch.testing.assert_close(layerwise.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    torch.testing.assert_close(logits(layerwise), logits(model))


@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_configured_attention_is_set(folder, attention, layerwise):
    assert load("fp32", folder, layerwise, attention=attention).config._attn_implementation == attention


def test_layer_by_layer_is_for_one_device(folder, monkeypatch):
    properties = SimpleNamespace(total_memory=int(79.6e9))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    with pytest.raises(Unsupported, match="^does not fit one GPU of 80 GB; this precision cannot be split$"):
        load("bf16", folder, layerwise=True, device_map="auto")


def test_bitsandbytes_is_silent_at_every_call(folder, caplog):
    model = load("llm-int8", folder)
    caplog.clear()
    logits(model)
    assert not [record for record in caplog.records if record.name.startswith("bitsandbytes")]


# Calibration


def test_outlier_columns_are_those_that_the_text_excites(folder):
    model, dense = load("int8-fused-outlier", folder), load("bf16", folder)
    # An independent look: the inputs of the dense model's projections.
    inputs = []
    handle = dense.model.layers[0].self_attn.q_proj.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    logits(dense)
    handle.remove()
    excited = (inputs[0].abs() > THRESHOLD).any(dim=1)[0].nonzero().flatten().tolist()
    first, source = model.model.layers[0].self_attn, dense.model.layers[0].self_attn
    assert 3 in excited and first.q_proj.outlier_columns.tolist() == excited
    assert torch.equal(first.q_proj.outlier_weight, source.q_proj.weight[:, first.q_proj.outlier_columns])
    # q, k and v share their input, so they share the columns and can be fused.
    assert torch.equal(first.q_proj.outlier_columns, first.v_proj.outlier_columns)


def test_no_column_is_an_outlier_below_the_threshold(folder):
    columns = find_outlier_columns(load("int8-fused", folder), IDS, threshold=1e9)
    assert len(columns) == 14 and not any(outliers.numel() for outliers in columns.values())


def test_without_text_a_calibrated_precision_is_unsupported(folder):
    for name in ("int8-fused-outlier", "int4-fused"):
        with pytest.raises(Unsupported, match="calibration text"):
            load(name, folder, calibration_ids=None)


def test_a_calibrated_precision_gets_text_in_a_measurement(folder, measuring, monkeypatch):
    """A short text of the job's corpus, and only where it is needed: tokenizing takes time."""
    from llmstudy.measure import text

    monkeypatch.setattr(text, "CALIBRATION_TOKENS", 20)
    seen, get = {}, precisions.get

    def keep(name, request):
        seen[name] = request
        return get(name).load(request)

    monkeypatch.setattr(precisions, "get", lambda name: dataclasses.replace(get(name), load=partial(keep, name)))
    for name in ("int8-fused-outlier", "int8-fused"):
        measuring("probe", model=folder, precision=name).load_model()
    assert seen["int8-fused"].calibration_ids is None
    ids = seen["int8-fused-outlier"].calibration_ids
    tokenizer = open_weights(folder).tokenizer
    assert ids.dtype == torch.int64 and ids.shape == (8, 20)
    before, last = (tokenizer(document)["input_ids"] for document in tiny.DOCUMENTS[-2:])
    assert ids.flatten().tolist() == last + before[len(last) - 160 :]


IMPORTS = """
import sys
from pathlib import Path
from types import SimpleNamespace
from types import SimpleNamespace
from llmstudy.models import precisions
from llmstudy.measure.session import Session
from llmstudy.fetch.weights import open_weights
from llmstudy.runner.job import Configuration

weights = open_weights(Path(sys.argv[1]))
for name in sys.argv[2:]:
    precision = precisions.get(name)
    job = SimpleNamespace(configurations=[Configuration(name, "sdpa", "generate")])
    Session.import_libraries(SimpleNamespace(weights=weights, job=job))
    before = "bitsandbytes" in sys.modules
    precision.load(precisions.LoadRequest(weights=weights, device="cpu", attention="sdpa"))
    print(name, before, "bitsandbytes" in sys.modules)
"""


def test_a_library_is_imported_before_loading_and_only_where_it_is_needed(folder):
    names = ["fp32", "bf16", "int8-fused", "int8-w8a8", "llm-int8"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", IMPORTS, str(folder), *names]
    lines = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    expected = [f"{name} {name == 'llm-int8'} {name == 'llm-int8'}" for name in names]
    assert [line for line in lines if line.split(" ")[0] in names] == expected
