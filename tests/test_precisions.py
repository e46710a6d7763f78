"""Precisions: the library's way to load and ours give the same model, synthetic weights are always the same ones."""

import dataclasses
import os
import subprocess
import sys
from functools import partial

import pytest
import tiny
import torch
from llmstudy.errors import StudyError, Unsupported
from llmstudy.fetch.weights import open_weights
from llmstudy.models import loading, precisions

BOTH_WAYS = ["fp32", "fp16", "bf16", "llm-int8", "llm-int8-t0", "nf4", "fp4"]
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
    return tiny.fetch({"type": "path", "folder": str(path / "source")}, path / "model")


def request_for(folder, **changes):
    given = {"weights": open_weights(folder), "device": "cpu", "attention": "sdpa", "calibration_ids": IDS}
    return precisions.LoadRequest(**(given | changes))


def logits(model):
    with torch.no_grad():
        return model(IDS).logits.float()


def in_place_of_random(request):
    """The request of real weights as one that takes the way of synthetic ones."""

    class Layerwise:
        real = False
        folder, config, tensor = request.weights.folder, request.weights.config, request.weights.tensor

    return dataclasses.replace(request, weights=Layerwise())


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_both_ways_to_load_give_the_same_model(folder, name, monkeypatch):
    request = request_for(folder)
    library = logits(precisions.get(name).load(request))
    monkeypatch.setattr(loading, "from_library", None)  # the other way really is another way
    ours = logits(precisions.get(name).load(in_place_of_random(request)))
    torch.testing.assert_close(ours, library, rtol=0, atol=0)


def test_the_outlier_decomposition_makes_a_difference_here(folder):
    """Or the comparison of both ways would not see a lost threshold."""
    request = request_for(folder)
    found = [logits(precisions.get(name).load(request)) for name in ("llm-int8", "llm-int8-t0", "bf16")]
    errors = [(one - found[2]).abs().mean().item() for one in found[:2]]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize("name", [*precisions.names(), "llm-int8-t0", "llm-int8-tinf"])
def test_every_precision_stays_near_the_reference(folder, name):
    """Cosine similarity of logits with fp32's: 4 bits are coarse, but no precision may lose the model."""
    request = request_for(folder)
    reference = logits(precisions.get("fp32").load(request)).flatten()
    try:
        found = logits(precisions.get(name).load(request)).flatten()
    except Unsupported as error:
        pytest.skip(str(error))
    floor = {"nf4": 0.9, "fp4": 0.85}.get(name, 0.97 if "int8" in name else 0.999)
    assert torch.cosine_similarity(found, reference, dim=0) > floor


@pytest.mark.parametrize("name", [*precisions.names(), "llm-int8-t0"])
def test_a_precision_keeps_what_it_promises(folder, name):
    precision = precisions.get(name)
    assert precision.name == name and precision.title
    try:
        model = precision.load(request_for(folder))
    except Unsupported as error:
        pytest.skip(str(error))
    assert not model.training
    assert model.model.embed_tokens.weight.dtype == getattr(torch, precision.compute_dtype)
    assert model.model.norm.weight.dtype == getattr(torch, precision.compute_dtype)
    assert type(model.lm_head) is torch.nn.Linear  # the head stays as it is
    tied = model.config.tie_word_embeddings
    assert (model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()) == tied
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


@pytest.mark.parametrize("name", precisions.names())
def test_declared_bits_are_those_stored(tmp_path, name):
    """What sizes jobs before anything is loaded, against the bytes of a loaded model; scales come on top."""
    from llmstudy.measure.footprint import total, weight_bytes

    wide = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "initializer_range": 0.02}  # no outliers
    folder = tiny.fetch(tiny.synthetic(**wide), tmp_path / "model")
    try:
        model = precisions.get(name).load(request_for(folder))
    except Unsupported as error:
        pytest.skip(str(error))
    linears = 2 * (256 * (256 + 128 + 128 + 256) + 3 * 256 * 512)
    bits = 8 * total(weight_bytes(model), "linears") / linears
    assert precisions.get(name).weight_bits <= bits < 1.1 * precisions.get(name).weight_bits


def test_synthetic_weights_are_the_same_whenever_they_are_made(tmp_path):
    first, again, other = (
        logits(precisions.get("bf16").load(request_for(tiny.fetch(tiny.synthetic(seed), tmp_path / name))))
        for name, seed in [("first", 1), ("again", 1), ("other", 2)]
    )
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.allclose(first, other)


@pytest.mark.parametrize("tied", [False, True])
def test_synthetic_weights_are_the_same_under_all_precisions(tmp_path, tied):
    """The quantised model is a rounded version of the dense one, and not of other random weights."""
    folder = tiny.fetch(tiny.synthetic(tie_word_embeddings=tied), tmp_path / "model")
    dense, int8, nf4 = (logits(precisions.get(name).load(request_for(folder))) for name in ("bf16", "llm-int8", "nf4"))
    assert torch.cosine_similarity(dense.flatten(), int8.flatten(), dim=0) > 0.99
    assert torch.cosine_similarity(dense.flatten(), nf4.flatten(), dim=0) > 0.9


def test_biases_are_loaded_by_both_ways(tmp_path):
    model = tiny.save_model(tmp_path / "source", attention_bias=True, mlp_bias=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    model.save_pretrained(tmp_path / "source")
    request = request_for(tiny.fetch({"type": "path", "folder": str(tmp_path / "source")}, tmp_path / "model"))
    torch.testing.assert_close(logits(precisions.get("fp32").load(request)), logits(model))
    for name in ("llm-int8", "nf4"):
        library = logits(precisions.get(name).load(request))
        torch.testing.assert_close(logits(precisions.get(name).load(in_place_of_random(request))), library)


def test_scaled_rotary_frequencies_are_computed_again(tmp_path):
    """A model built on the meta device has none; Llama 3's are not those of a plain model."""
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    model = tiny.save_model(tmp_path / "source", rope_parameters=scaling)
    request = request_for(tiny.fetch({"type": "path", "folder": str(tmp_path / "source")}, tmp_path / "model"))
    ours = precisions.get("fp32").load(in_place_of_random(request))
    torch.testing.assert_close(ours.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    torch.testing.assert_close(logits(ours), logits(model))


def test_the_attention_that_is_asked_for_is_set(folder):
    for attention in ("eager", "sdpa"):
        for way in (
            request_for(folder, attention=attention),
            in_place_of_random(request_for(folder, attention=attention)),
        ):
            assert precisions.get("fp32").load(way).config._attn_implementation == attention


def test_layer_by_layer_is_for_one_device(folder):
    with pytest.raises(Unsupported, match="several GPUs"):
        precisions.get("bf16").load(in_place_of_random(request_for(folder, device_map="auto")))


def test_bitsandbytes_says_nothing_at_every_call(folder, caplog):
    model = precisions.get("llm-int8").load(request_for(folder))
    caplog.clear()
    logits(model)
    assert not [record for record in caplog.records if record.name.startswith("bitsandbytes")]


MEMBERS = ["llm-int8-t0", "llm-int8-t0.5", "llm-int8-t2", "llm-int8-t6", "llm-int8-t10", "llm-int8-tinf"]


def test_facts_of_every_precision():
    entries = [precisions.get(name) for name in (*precisions.names(), *MEMBERS)]
    assert [entry.name for entry in entries] == [*precisions.names(), *MEMBERS]
    assert len({entry.color for entry in entries}) == len(entries)
    for entry in entries:
        assert entry.title and entry.family in ("dense", "int8", "4-bit")
        assert entry.own == entry.name.startswith("int8-")
        of_bitsandbytes = entry.name.startswith("llm-int8") or entry.name in ("nf4", "fp4")
        assert entry.packages == (("bitsandbytes",) if of_bitsandbytes else ())
        assert min(contrast(entry.color, page) for page in ("#ffffff", "#0d1117")) >= 3


def contrast(color: str, other: str) -> float:
    """WCAG 2.2, relative luminance of sRGB."""
    levels = []
    for text in (color, other):
        channels = (int(text[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        levels.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)
    return max(levels) / min(levels)


def test_thresholds_of_a_family_reach_bitsandbytes(folder):
    for name, threshold in [("llm-int8-t2.5", 2.5), ("llm-int8-tinf", float("inf")), ("llm-int8", 6.0)]:
        assert precisions.get(name).threshold == threshold
        for request in (request_for(folder), in_place_of_random(request_for(folder))):
            model = precisions.get(name).load(request)
            assert model.model.layers[1].mlp.down_proj.state.threshold == threshold


@pytest.mark.parametrize("near", [0, 0.25, 2, 8, 20, 100])
def test_thresholds_near_each_other_have_colors_of_their_own(near):
    assert precisions.get(f"llm-int8-t{near:g}").color != precisions.get(f"llm-int8-t{near + 1:g}").color


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("int7", "'int7': not known; allowed: .*llm-int8, .*llm-int8-t<x>"),
        ("llm-int8-t4.0", "'llm-int8-t4.0': .*'llm-int8-t4'"),
        ("llm-int8-t04", "'llm-int8-t4'"),
        ("llm-int8-t6.0", "'llm-int8-t6'"),
        ("llm-int8-t-1", "'-1' is no outlier threshold"),
        ("llm-int8-t1e3", "'1e3' is no outlier threshold"),
        ("llm-int8-tnan", "'nan' is no outlier threshold"),
        ("llm-int8-t", "'' is no outlier threshold"),
    ],
)
def test_a_name_that_is_no_precision_is_refused_in_one_line(name, line):
    with pytest.raises(StudyError, match=line):
        precisions.check(name)


def test_precisions_are_listed_by_registry_then_threshold():
    assert precisions.in_order(["gone", "nf4", "llm-int8-t10", "llm-int8-tinf", "llm-int8-t2", "llm-int8", "bf16"]) == [
        "bf16", "llm-int8", "llm-int8-t2", "llm-int8-t10", "llm-int8-tinf", "nf4", "gone"
    ]  # fmt: skip


def test_a_calibrated_precision_gets_text_in_a_measurement(folder, tiny_corpus, tmp_path, monkeypatch):
    """A short text of the job's corpus, and only where it is needed: tokenising takes time."""
    from llmstudy.measure import prompts
    from llmstudy.measure.session import Session

    monkeypatch.setattr(prompts, "CALIBRATION_TOKENS", 20)
    seen = {}
    for name in ("int8-fused-outlier", "int8-fused"):
        session: Session = tiny.session(tiny.job("memory", folder, tiny_corpus, precision=name), tmp_path)
        watched = dataclasses.replace(precisions.get(name), load=partial(seen.__setitem__, name))
        monkeypatch.setitem(session.__dict__, "precision", watched)
        session.load_model()
    assert seen["int8-fused"].calibration_ids is None
    ids = seen["int8-fused-outlier"].calibration_ids
    tokenizer = open_weights(folder).tokenizer
    assert ids.dtype == torch.int64 and ids.tolist() == [tokenizer(tiny.DOCUMENTS[-1])["input_ids"][:20]]


def test_without_text_a_calibrated_precision_is_unsupported(folder):
    with pytest.raises(Unsupported, match="calibration text"):
        precisions.get("int8-fused-outlier").load(request_for(folder, calibration_ids=None))


IMPORTS = """
import sys
from pathlib import Path
from types import SimpleNamespace
from llmstudy.models import precisions
from llmstudy.measure.session import Session
from llmstudy.fetch.weights import open_weights

weights = open_weights(Path(sys.argv[1]))
for name in sys.argv[2:]:
    one = precisions.get(name)
    Session.import_libraries(SimpleNamespace(weights=weights, precision=one))
    before = "bitsandbytes" in sys.modules
    one.load(precisions.LoadRequest(weights=weights, device="cpu", attention="sdpa"))
    print(name, before, "bitsandbytes" in sys.modules)
"""


def test_a_library_is_imported_before_loading_and_only_where_it_is_needed(folder):
    names = ["fp32", "bf16", "int8-fused", "int8-w8a8", "llm-int8"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", IMPORTS, str(folder), *names]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    wanted = [f"{name} {name == 'llm-int8'} {name == 'llm-int8'}" for name in names]
    assert [line for line in told if line.split(" ")[0] in names] == wanted
