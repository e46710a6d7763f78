"""Checkpoints that are already quantized: measured as they are, compared with their original, never read as weights."""

import json
import math
from pathlib import Path

import pytest
import tiny
import torch
from checkout import Checkout, inputs, jobs, measuring
from llmstudy import config as study_config
from llmstudy import kinds
from llmstudy.errors import StudyError, Unsupported
from llmstudy.fetch.models import fetch_weights
from llmstudy.fetch.weights import open_weights
from llmstudy.measure import footprint, measure
from llmstudy.models import precisions
from llmstudy.runner.job import Identity
from safetensors.torch import load_file, save_file

IDS = torch.tensor([[5, 9, 200, 31, 77, 8, 19]])
BITSANDBYTES = {"int8": {"load_in_8bit": True}, "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}
CODED = ("fp8", "compressed-tensors", "gptq", "awq", "exl9")
WHAT = {"int8": "bitsandbytes", "nf4": "bitsandbytes"} | {name: name for name in CODED}


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """The source of a 16-bit model with a seed of its own."""
    folder = tmp_path_factory.mktemp("published") / "original"
    tiny.save_model(folder)
    return folder


@pytest.fixture(scope="module")
def quantized(original):
    """A function: the folder of a checkpoint of the original that some method quantized."""

    def make(method: str) -> Path:
        folder = original.with_name(method)
        if not folder.exists():
            (with_bitsandbytes if method in BITSANDBYTES else with_codes)(original, folder, method)
            tiny.save_tokenizer(folder)
        return folder

    return make


def with_bitsandbytes(original: Path, folder: Path, method: str) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings = BitsAndBytesConfig(**BITSANDBYTES[method])
    model = AutoModelForCausalLM.from_pretrained(original, dtype=torch.bfloat16, quantization_config=settings)
    model.save_pretrained(folder)


def with_codes(original: Path, folder: Path, method: str) -> None:
    """Codes and scales under the names of the method, as its publishers store them."""
    folder.mkdir()
    tensors = load_file(original / "model.safetensors")
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        weight, path = tensors.pop(name), name.removesuffix(".weight")
        if method == "fp8":
            scale = weight.abs().max() / 448
            tensors[name] = (weight / scale).to(torch.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = scale.expand(math.ceil(len(weight) / 64), math.ceil(len(weight[0]) / 64))
            tensors[f"{name}_scale_inv"] = tensors[f"{name}_scale_inv"].contiguous()
        elif method == "compressed-tensors":
            scale = weight.abs().amax(1, keepdim=True) / 127
            tensors |= {name: (weight / scale).round().to(torch.int8), f"{name}_scale": scale}
        else:
            tensors[f"{path}.qweight"] = torch.zeros(len(weight[0]) // 8, len(weight), dtype=torch.int32)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((original / "config.json").read_text())
    how = {"quant_method": method} | {"gptq": {"bits": 4}, "awq": {"bits": 4}}.get(method, {})
    how |= {"weight_block_size": [64, 64]} if method == "fp8" else {}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": how}))


def fetched(folder: Path, **more) -> Path:
    """The folder with the manifest of a model's own weights, or of a checkpoint beside ``original``."""
    target = folder.with_name(f"{folder.name}-{'beside' if 'original' in more else 'fetched'}")
    entry = {"name": folder.name, "source": {"type": "path", "folder": str(folder)}, "context": None}
    fetch_weights(entry | ({} if "original" in more else {"as_published": True}) | more, target, target)
    return target


def logits(model):
    with torch.no_grad():
        return model(IDS).logits.float()


# Weights that came quantized


@pytest.mark.parametrize("method", BITSANDBYTES)
def test_weights_as_published_are_those_of_the_library(measuring, quantized, original, method):
    """And no other model: near the original, and the same as it quantized on the fly."""
    session = measuring("probe", model=fetched(quantized(method)), precision="as-published")
    model, _ = session.load_model()
    assert footprint.quantized_share(model) == 1
    found = logits(model)
    fly = {"int8": "llm-int8", "nf4": "nf4"}[method]
    same = precisions.get(fly).load(precisions.LoadRequest(open_weights(fetched(original)), "cpu", "sdpa"))
    torch.testing.assert_close(found, logits(same), rtol=0.02, atol=0.02)
    results = measure(measuring("probe", model=fetched(quantized(method)), precision="as-published"))
    assert results["quantized_share"] == 1 and results["workloads"][0]["status"] == "ok"


@pytest.mark.parametrize(("stored", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_unquantized_weights_as_published_have_their_stored_dtype(measuring, original, tmp_path, stored, dtype):
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(original, dtype=stored).save_pretrained(tmp_path / stored)
    tiny.save_tokenizer(tmp_path / stored)
    model, _ = measuring("probe", model=fetched(tmp_path / stored), precision="as-published").load_model()
    assert {parameter.dtype for parameter in model.parameters()} == {dtype} and footprint.quantized_share(model) == 0
    assert torch.equal(
        model.lm_head.weight.float(), load_file(original / "model.safetensors")["lm_head.weight"].to(dtype).float()
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16", "llm-int8", "nf4", "int8-fused", "int8-w8a8", "fp8-weight"])
@pytest.mark.parametrize("method", [*BITSANDBYTES, *CODED])
def test_quantized_weights_have_no_row_of_another_precision(measuring, quantized, method, precision):
    session = measuring("probe", model=fetched(quantized(method)), precision=precision)
    with pytest.raises(Unsupported, match=f"already quantized .{WHAT[method]}.; allowed: as-published"):
        session.load_model()


@pytest.mark.parametrize("precision", ["int8-fused", "int8-w8a8", "fp8-weight"])
@pytest.mark.parametrize("method", ["int8", "fp8", "compressed-tensors", "gptq"])
def test_no_loader_of_ours_reads_codes_as_weights(quantized, method, precision):
    """Even where nothing says that they are codes."""
    weights = open_weights(fetched(quantized(method)))
    with pytest.raises(Unsupported, match="codes, and no weights|only the library joins them"):
        precisions.get(precision).load(precisions.LoadRequest(weights, "cpu", "sdpa"))


@pytest.mark.parametrize(
    ("method", "line"),
    [
        ("gptq", "optimum|gptqmodel"),
        ("awq", "gptqmodel"),
        ("compressed-tensors", "compressed-tensors"),
        ("fp8", "fp8: transformers loads it dequantized on cpu"),
        ("exl9", "Unknown quantization type, got exl9"),
    ],
)
def test_what_the_library_cannot_run_here_is_unsupported_by_name(measuring, quantized, method, line):
    with pytest.raises(Unsupported, match=line):
        measuring("probe", model=fetched(quantized(method)), precision="as-published").load_model()


@pytest.mark.parametrize("method", [*BITSANDBYTES, *CODED])
def test_a_model_of_quantized_weights_is_refused_before_any_job(quantized, method, tmp_path):
    folder = quantized(method)
    line = f"models: {folder.name}: its weights are already quantized .{WHAT[method]}.; precisions may be .as-published"
    with pytest.raises(StudyError, match=line):
        fetched(folder, as_published=False)
    config = tiny.study(tmp_path)
    config["models"][0] |= {"name": folder.name, "source": {"type": "path", "folder": str(folder)}}
    with pytest.raises(StudyError, match=line):
        study_config.complete(config)
    config["models"][0]["precisions"] = ["as-published"]
    study = study_config.complete(config)
    assert study.models[0].reference == "as-published" and kinds.fetch_settings(study, folder.name)["as_published"]
    assert {one.precision for one in kinds.records(study)} == {"as-published"}


# Checkpoints beside their original


def beside(original: Path, folder: Path) -> Path:
    return fetched(folder, original=str(fetched(original)))


def test_a_checkpoint_is_compared_with_its_original(measuring, original, quantized):
    """Its perplexity and KL divergence, against a few lines of their own."""
    from transformers import AutoModelForCausalLM

    model = fetched(original)
    checkpoints = {"nf4": str(beside(original, quantized("nf4")))}
    reference = measuring("reference", "reference", model=model, precision="fp32")
    measure(reference)
    session = measuring("quality", model=model, precision="as-published:nf4", checkpoints=checkpoints)
    assert session.job.reference_folder == str(reference.artifacts)
    results = measure(session)
    entry = results["protocols"][0]
    assert results["quantized_share"] == 1 and entry["status"] == "ok" and "unpaired" not in entry
    tokenizer = open_weights(model).tokenizer
    first = tokenizer(tiny.DOCUMENTS[0])["input_ids"][:32]
    ids = torch.tensor([first])
    with torch.no_grad():
        p, q = (
            AutoModelForCausalLM.from_pretrained(folder, dtype="auto")(ids).logits[0, :-1].float().log_softmax(-1)
            for folder in (original, quantized("nf4"))
        )
    nll = session.arrays[f"tiny-text/{entry['protocol']}/nll"][:31]
    kl = session.arrays[f"tiny-text/{entry['protocol']}/kl"][:31]
    assert nll.mean() == pytest.approx(-q[range(31), first[1:]].mean().item(), rel=0.02)
    assert kl.mean() == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=0.02)


def test_the_package_of_a_checkpoint_is_no_memory_of_its_model(measuring, original, quantized, monkeypatch):
    """It is imported before memory counts, of the model's own weights and of a checkpoint beside them."""
    from llmstudy.measure import session as sessions

    seen = []
    monkeypatch.setattr(sessions, "import_module", seen.append)
    checkpoints = {"nf4": str(beside(original, quantized("nf4")))}
    for model, precision in ((fetched(original), "as-published:nf4"), (fetched(quantized("gptq")), "as-published")):
        measuring("probe", model=model, precision=precision, checkpoints=checkpoints).import_libraries()
    measuring("probe", model=fetched(original), precision="as-published").import_libraries()
    assert seen == ["accelerate", "bitsandbytes", "accelerate", "gptqmodel", "accelerate"]


def test_a_checkpoint_of_other_tokens_is_refused(original, quantized, tmp_path):
    folder = tmp_path / "other"
    (folder / "x").mkdir(parents=True)
    for file in quantized("nf4").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    words = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(StudyError, match="other: not a checkpoint of the model .*: token '[ab]' has another id"):
        beside(original, folder)


def test_a_checkpoint_of_another_size_or_of_gguf_is_refused(original, tmp_path):
    tiny.save_model(tmp_path / "large", hidden_size=128)
    with pytest.raises(StudyError, match="large: not a checkpoint of the model .*: hidden_size is 128, and 64 there"):
        beside(original, tmp_path / "large")
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "model.gguf").touch()
    with pytest.raises(StudyError, match=r"model.gguf would be dequantized"):
        beside(original, tmp_path / "gguf")


@pytest.fixture
def config(tmp_path):
    """A study of a model with two published quantizations."""
    config = tiny.study(tmp_path)
    sources = {name: {"type": "path", "folder": str(tmp_path / name)} for name in ("awq", "w4a16-g128")}
    config["models"][0]["checkpoints"] = sources
    return config


def test_every_checkpoint_is_a_precision_of_its_model(config):
    study = study_config.complete(config)
    assert study.models[0].precisions == ("fp32", "bf16", "as-published:awq", "as-published:w4a16-g128")
    identity = Identity("tiny", "quality", "tiny-llama", "as-published:awq", "sdpa", "generate")
    job = kinds.job(study, identity)
    assert job.checkpoints == {"awq": "resources/checkpoints/tiny-llama/awq"}
    assert kinds.inputs(study, identity)["checkpoints"] == ["resources/checkpoints/tiny-llama/awq/manifest.json"]
    panel = next(one for one in kinds.records(study, "panel"))
    assert set(kinds.job(study, panel).checkpoints) == {"awq", "w4a16-g128"}
    assert kinds.job(study, next(kinds.records(study, "reference").__iter__())).checkpoints is None
    assert "as-published:awq" not in study.for_tables()["dense"]
    assert kinds.fetch_settings(study, "tiny-llama", "awq")["original"] == "resources/models/tiny-llama"


def test_the_file_of_a_checkpoints_record_has_no_colon(config):
    """And the way back from its name is unique."""
    for one in kinds.records(study_config.complete(config)):
        assert ":" not in one.path and one.name.replace("--", ":").startswith(f"{one.precision}.")


@pytest.mark.slow
def test_a_dry_run_fetches_checkpoints_and_measures_them(config, tmp_path):
    checkout = Checkout(tmp_path)
    output = checkout.snakemake("-n", checkout.write(config))
    found = jobs(output)
    assert found["fetch_checkpoint"] == 2 and measuring(found)["measure_quality"] == 4
    assert ", resources/checkpoints/tiny-llama/awq/manifest.json" in output  # after the original's
    assert "resources/models/tiny-llama/manifest.json" in inputs(output, "fetch_checkpoint")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"checkpoints": {}, "precisions": ["fp32", "as-published:awq"]}, "'awq' is missing, .* allowed: none"),
        ({"precisions": ["fp32", "as-published:gptq"]}, "'gptq' is missing, .* allowed: as-published:awq"),
        ({"precisions": ["fp32", "as-published:a:b"]}, "'a:b' names no checkpoint"),
        ({"checkpoints": {"a--b": {"type": "path", "folder": "x"}}}, "models.0.checkpoints: 'a--b' is not allowed"),
        ({"checkpoints": {"a": {"type": "hub", "repo": "a/b"}}}, "models.0.checkpoints.a: key 'revision' is missing"),
        (
            {"checkpoints": {"a": {"type": "synthetic", "shape": "llama-2-7b"}}},
            "checkpoints.a: random weights were never published",
        ),
        (
            {"source": tiny.synthetic(), "checkpoints": {}, "precisions": ["fp32", "as-published"]},
            "random weights were never published",
        ),
    ],
)
def test_a_mistake_is_told_before_any_job(config, change, line):
    config["models"][0] |= change
    with pytest.raises(StudyError, match=line):
        study_config.complete(config)


def test_names_have_colors_that_can_be_read_and_told_apart():
    names = ["awq", "gptq", "fp8", "int8", "nf4", "w4a16", "w8a8", "compressed"]
    colors = [precisions.get(f"as-published:{name}").color for name in names]
    assert len({*colors, *(precisions.get(name).color for name in precisions.names())}) == len(names) + len(
        precisions.names()
    )


# What was replaced


@pytest.mark.parametrize(("kind", "share"), [("mixtral", 0.111), ("qwen3-moe", 0.199)])
def test_experts_in_one_tensor_stay_and_the_share_says_so(measuring, tmp_path, kind, share):
    model = of_kind(kind, tmp_path)
    results = measure(measuring("probe", model=model, precision="nf4"))
    assert results["quantized_share"] == pytest.approx(share, abs=0.001)


@pytest.mark.parametrize(("kind", "precision"), [("falcon", "nf4"), ("falcon", "llm-int8"), ("gpt2", "int8-fused")])
def test_a_precision_that_replaced_nothing_is_unsupported(measuring, tmp_path, kind, precision):
    session = measuring("probe", model=of_kind(kind, tmp_path), precision=precision)
    with pytest.raises(Unsupported, match=f"{precision}.: it replaces no layer of model type '{kind}'"):
        session.load_model()


@pytest.mark.parametrize("kind", ["gemma2", "bloom"])
def test_attention_that_a_class_has_not_is_unsupported(measuring, tmp_path, kind):
    folder = of_kind(kind, tmp_path)
    for precision in ("bf16", "int8-fused"):
        with pytest.raises(
            Unsupported, match="attention 'sdpa': this model's class does not support it; allowed: eager"
        ):
            measuring("probe", model=folder, precision=precision, attention="sdpa").load_model()
        assert measuring("probe", model=folder, precision=precision, attention="eager").load_model()


@pytest.mark.parametrize(("runtime", "tokens"), [("generate", 32), ("graph", 36)])
def test_a_window_bounds_the_cache_that_a_probe_counts_where_the_runtime_cuts_it(measuring, tmp_path, runtime, tokens):
    from architectures import model_of

    model_of("mistral", sliding_window=32).save_pretrained(tmp_path / "mistral")
    tiny.save_tokenizer(tmp_path / "mistral")
    workload = {"batch": 1, "prompt_tokens": 32, "new_tokens": 4}
    session = measuring("probe", model=fetched(tmp_path / "mistral"), precision="fp32", runtime=runtime)
    session.job.settings["workloads"] = [workload]
    entry = measure(session)["workloads"][0]
    assert entry["status"] == "ok" and entry["kv_cache_bytes"] == 2 * 2 * 2 * 16 * 4 * tokens


def of_kind(kind: str, folder: Path) -> Path:
    """A fetched model of another architecture."""
    from architectures import model_of

    model_of(kind).save_pretrained(folder / kind)
    tiny.save_tokenizer(folder / kind)
    return fetched(folder / kind, context=128)
