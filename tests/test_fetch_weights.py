"""Weights from local folders, wheels and GGUF files, and opening them again."""

import hashlib
import json
import subprocess
import sys

import numpy
import pytest
import tiny
import torch
from fetch_toolkit import build_wheel, entry, manifest, one_line, write_gguf
from llmstudy.errors import StudyError, Unsupported
from llmstudy.fetch.inspection import read_config, sizes
from llmstudy.fetch.models import fetch_weights
from llmstudy.fetch.weights import open_weights

INDEX = "model.safetensors.index.json"


@pytest.fixture
def theirs(tmp_path):
    """The user's folder with a tiny model."""
    tiny.save_model(tmp_path / "theirs")
    return tmp_path / "theirs"


@pytest.fixture
def gguf(tmp_path):
    """The user's folder with a GGUF file, and the packed bytes of its matrices."""
    (tmp_path / "theirs").mkdir()
    return tmp_path / "theirs/tiny.gguf", write_gguf(tmp_path / "theirs/tiny.gguf")


@pytest.fixture
def fetch(tmp_path):
    """Fetch, from the user's folder if no source is given, and return the model's folder."""

    def fetch(source=None, **more):
        source = source or {"type": "path", "folder": str(tmp_path / "theirs")}
        fetch_weights(entry(source, **more), tmp_path / "ours", tmp_path / "downloads")
        return tmp_path / "ours"

    return fetch


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard", ["5GB", "40KB"])
def test_local_folder_is_read_in_place(tmp_path, fetch, tied, shard):
    original = tiny.save_model(tmp_path / "theirs", shard=shard, tie_word_embeddings=tied)
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1 or shard == "5GB"
    ours = fetch()
    assert [path.name for path in ours.iterdir()] == ["manifest.json"]
    weights = open_weights(ours)
    assert (weights.name, weights.real, weights.seed, weights.context) == ("tiny", True, None, 256)
    assert manifest(ours)["parameters"] == original.num_parameters()
    for name, expected in original.state_dict().items():
        found = weights.tensor(name, tuple(expected.shape), torch.float32, "cpu")
        assert torch.equal(found, expected), name
    assert weights.tensor("lm_head.weight", (320, 64), torch.bfloat16, "cpu").dtype == torch.bfloat16
    assert weights.config().num_key_value_heads == 2
    assert weights.tokenizer.decode(weights.tokenizer("once upon a time")["input_ids"]) == "once upon a time"
    assert weights.tokenizer.model_max_length == 256


def test_checksums_and_sizes_are_those_of_the_files(theirs, fetch):
    ours = fetch(context=128)
    files = manifest(ours)["files"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    for name, described in files.items():
        data = (theirs / name).read_bytes()
        written = (theirs / name).stat().st_mtime_ns
        assert described["sha256"] == hashlib.sha256(data).hexdigest()
        assert (described["bytes"], described["mtime_ns"]) == (len(data), written)
    assert open_weights(ours).context == 128


@pytest.mark.parametrize("left_out", [{}, {"num_key_value_heads": None, "head_dim": None}])
def test_the_manifest_has_the_sizes_that_config_json_leaves_out(tmp_path, fetch, left_out):
    """A config.json of LLaMA 1 has no num_key_value_heads and no head_dim."""
    tiny.save_model(tmp_path / "theirs", num_key_value_heads=4)
    path = tmp_path / "theirs/config.json"
    config = json.loads(path.read_text())
    absent = ("num_key_value_heads", "head_dim", "tie_word_embeddings")
    kept = {key: value for key, value in config.items() if key not in absent}
    path.write_text(json.dumps(kept | left_out))
    assert manifest(fetch())["architecture"] == {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "vocab_size": 320,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
    }


def test_an_architecture_that_does_not_group_queries_has_as_many_key_value_heads_as_heads(tmp_path):
    config = {"model_type": "gpt_neox", "hidden_size": 64, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = sizes(read_config(tmp_path))
    assert (found["num_key_value_heads"], found["head_dim"]) == (4, 16)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "pickled weights only"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds neither model.safetensors nor"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: not JSON"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x10" + bytes(20)), "cut short or not safeten"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, theirs, fetch, change, expected):
    change(theirs)
    with one_line(expected):
        fetch()
    assert not (tmp_path / "ours/manifest.json").exists()


def test_missing_folder_and_too_long_context(tmp_path, fetch):
    with one_line("is neither a folder nor a GGUF file"):
        fetch()
    tiny.save_model(tmp_path / "theirs")
    with one_line("context 512 is longer than the model's 256 tokens"):
        fetch(context=512)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("../model.safetensors", "outside its folder"), ("model-9-of-9.safetensors", "missing")],
)
def test_index_may_not_name_files_outside_or_missing(tmp_path, fetch, name, expected):
    tiny.save_model(tmp_path / "theirs", shard="40KB")
    (tmp_path / "theirs" / INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    with one_line(expected):
        fetch()


def test_opening_names_what_is_missing(tmp_path, theirs, fetch):
    with one_line("manifest.json: missing, so ours was not fetched"):
        open_weights(tmp_path / "ours")
    ours = fetch()
    weights = open_weights(ours)
    with pytest.raises(Unsupported, match="model.nothing: the files of tiny hold it under another name or in parts"):
        weights.tensor("model.nothing", (1,), torch.float32, "cpu")
    with one_line("has shape (320, 64), config.json says (320, 63)"):
        weights.tensor("lm_head.weight", (320, 63), torch.float32, "cpu")
    file = theirs / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    with one_line(f"model.safetensors: has {len(data) - 1} bytes, manifest.json says {len(data)}"):
        open_weights(ours)
    file.unlink()
    with one_line("model.safetensors: missing, though manifest.json lists it"):
        open_weights(ours)


def test_safetensors_out_of_a_wheel(tmp_path, theirs, fetch, monkeypatch):
    data = {path.name: path.read_bytes() for path in theirs.iterdir()}
    build_wheel(tmp_path / "index", {f"tiny_data/model/{name}": content for name, content in data.items()})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    listing = "".join(f"{hashlib.sha256(data[name]).hexdigest()}  {name}\n" for name in sorted(data))
    source = {"type": "pypi", "package": "tiny-data==1.0", "member": "tiny_data/model",
              "sha256": hashlib.sha256(listing.encode()).hexdigest()}  # fmt: skip
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours/model-00001-of-00002.safetensors").write_bytes(b"of an older fetch")
    ours = fetch(source)
    assert {path.name for path in ours.iterdir()} == set(data) | {"manifest.json"}
    assert open_weights(ours).folder == ours


def unpack_q4_1(packed, columns: int):
    """Q4_1 by its definition: per 32 weights fp16 scale and minimum and 16 bytes, the first half in the low bits."""
    blocks = packed.reshape(-1, 20)
    scale, minimum = blocks[:, :4].copy().view(numpy.float16).astype(numpy.float64).T[:, :, None]
    values = numpy.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    return (scale * values + minimum).reshape(-1, columns)


def test_gguf_is_dequantized_exactly(gguf, fetch):
    _, packed = gguf
    ours = fetch()
    weights = open_weights(ours)
    assert weights.folder == ours
    assert weights.config().architectures == ["LlamaForCausalLM"]
    names = {"token_embd": "embed_tokens", "blk.0.attn_v": "layers.0.self_attn.v_proj",
             "blk.0.attn_output": "layers.0.self_attn.o_proj", "blk.0.ffn_gate": "layers.0.mlp.gate_proj",
             "blk.0.ffn_up": "layers.0.mlp.up_proj", "blk.0.ffn_down": "layers.0.mlp.down_proj"}  # fmt: skip
    for name, path in names.items():
        expected = unpack_q4_1(packed[name], 96 if name.endswith("down") else 64)
        found = weights.tensor(f"model.{path}.weight", expected.shape, torch.float32, "cpu").numpy()
        assert numpy.array_equal(found.astype(numpy.float64), expected), name
    # GGUF interleaves the two halves of each head's rotary dimensions; transformers keeps them apart
    expected = unpack_q4_1(packed["blk.0.attn_q"], 64).reshape(2, 16, 2, 64).swapaxes(1, 2).reshape(64, 64)
    found = weights.tensor("model.layers.0.self_attn.q_proj.weight", (64, 64), torch.float32, "cpu").numpy()
    assert numpy.array_equal(found.astype(numpy.float64), expected)
    assert weights.tokenizer("aton.")["input_ids"] == [5, 8, 9]
    assert "8 Q4_1" in manifest(ours)["fetched_note"]
    assert weights.context == weights.tokenizer.model_max_length == 128
    assert json.loads((ours / "tokenizer_config.json").read_text())["model_max_length"] == 128


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) - 500], lambda data: data[:40], lambda data: b"GGML" + data[4:]]
)
def test_damaged_gguf(tmp_path, gguf, fetch, damage):
    file, _ = gguf
    file.write_bytes(damage(file.read_bytes()))
    with one_line("tiny.gguf: corrupt or not a GGUF file"):
        fetch()
    assert list((tmp_path / "ours").iterdir()) == []


def test_importing_what_fetches_does_not_import_torch(repository):
    code = "import sys; import llmstudy.fetch.models; print('torch' in sys.modules or 'transformers' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository / "workflow/scripts", capture_output=True, text=True
    )
    assert done.stdout == "False\n", done.stderr


def test_remote_code_is_never_run(tmp_path, theirs, fetch):
    config = json.loads((theirs / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "code.Config"}}
    (theirs / "config.json").write_text(json.dumps(config))
    (theirs / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(StudyError, match="config.json: transformers cannot read this architecture .*custom code"):
        fetch()
    assert not (tmp_path / "ran").exists()
