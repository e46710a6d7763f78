"""What the tests of fetching share: entries of a config, wheels, and a GGUF file, all made on the spot."""

import base64
import contextlib
import hashlib
import json
import zipfile
from pathlib import Path

import pytest
from llmstudy.errors import StudyError

# byte-pair tokens and the merges that make two of them
GGUF_TOKENS = ["<unk>", "<s>", "</s>", "a", "t", "at", "o", "n", "on", "."]
GGUF_MERGES = ["a t", "o n"]


def entry(source: dict, **more) -> dict:
    """A model of the config."""
    return {"name": "tiny", "context": None, "license": "MIT", "source": source} | more


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


@contextlib.contextmanager
def one_line(expected: str):
    """The body raises a StudyError with ``expected`` in its one line."""
    with pytest.raises(StudyError) as error:
        yield
    assert expected in str(error.value) and "\n" not in str(error.value)


def build_wheel(
    folder: Path, members: dict[str, bytes | zipfile.ZipInfo], name: str = "tiny_data", version: str = "1.0"
):
    """A wheel that pip accepts, with ``members`` (path → bytes) inside."""
    info = f"{name}-{version}.dist-info"
    contents = members | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n"
        for path, data in contents.items()
    )
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, data in contents.items():
            archive.writestr(path, data)
        archive.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
    return wheel


def write_gguf(path: Path) -> dict:
    """A one-layer LLaMA in GGUF with Q4_1 matrices; returns the packed bytes of each matrix by name."""
    import gguf
    import numpy

    hidden, feed_forward, heads, vocabulary = 64, 96, 2, len(GGUF_TOKENS)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_block_count(1)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(GGUF_TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (vocabulary - 3))
    writer.add_token_merges(GGUF_MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    random = numpy.random.default_rng(0)
    shapes = {"token_embd": (vocabulary, hidden), "blk.0.attn_q": (hidden, hidden), "blk.0.attn_k": (hidden, hidden),
              "blk.0.attn_v": (hidden, hidden), "blk.0.attn_output": (hidden, hidden),
              "blk.0.ffn_gate": (feed_forward, hidden), "blk.0.ffn_up": (feed_forward, hidden),
              "blk.0.ffn_down": (hidden, feed_forward)}  # fmt: skip
    written = {}
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", numpy.ones(hidden, dtype=numpy.float32))
    for name, shape in shapes.items():
        array = random.normal(0, 0.1, shape).astype(numpy.float32)
        packed = gguf.quants.quantize(array, gguf.GGMLQuantizationType.Q4_1)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
        written[name] = packed
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written
