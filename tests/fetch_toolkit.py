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


def write_model_gguf(
    path: Path, model, keys: dict | None = None, tensors: dict | None = None, name: str = "llama", split: int = 1
):
    """A transformers LLaMA as GGUF in fp32 with the tokenizer of ``tiny``; ``keys`` go below ``llama.``.

    ``tensors`` are added as they are. With ``split`` so many files are written, as llama.cpp splits them: all keys in
    the first. Returns the paths.
    """
    import gguf
    import tiny

    config = model.config
    tiny.save_tokenizer(path.parent)
    tokenizer = json.loads((path.parent / "tokenizer.json").read_text())["model"]
    for file in path.parent.glob("*.json"):
        file.unlink()
    arrays = {_gguf_name(key): _permuted(key, value.numpy(), config) for key, value in model.state_dict().items()}
    arrays |= tensors or {}
    paths = (
        [path]
        if split == 1
        else [path.with_name(f"{path.stem}-{i:05}-of-{split:05}.gguf") for i in range(1, split + 1)]
    )
    for number, part in enumerate(paths):
        writer = gguf.GGUFWriter(part, name)
        if split > 1:
            writer.add_uint16("split.no", number)
            writer.add_uint16("split.count", split)
            writer.add_int32("split.tensors.count", len(arrays))
        if number == 0:
            writer.add_context_length(config.max_position_embeddings)
            writer.add_embedding_length(config.hidden_size)
            writer.add_block_count(config.num_hidden_layers)
            writer.add_feed_forward_length(config.intermediate_size)
            writer.add_head_count(config.num_attention_heads)
            writer.add_head_count_kv(config.num_key_value_heads)
            writer.add_layer_norm_rms_eps(config.rms_norm_eps)
            writer.add_rope_dimension_count(config.head_dim)
            writer.add_vocab_size(config.vocab_size)
            writer.add_tokenizer_model("gpt2")
            writer.add_token_list(sorted(tokenizer["vocab"], key=tokenizer["vocab"].get))
            writer.add_token_types([3, 3] + [1] * (len(tokenizer["vocab"]) - 2))
            writer.add_token_merges([" ".join(merge) for merge in tokenizer["merges"]])
            writer.add_bos_token_id(0)
            writer.add_eos_token_id(1)
            for key, value in (keys or {}).items():
                add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
                add(f"{name}.{key}", value)
        for key, array in list(arrays.items())[number::split]:
            writer.add_tensor(key, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


def _gguf_name(name: str) -> str:
    """The name that llama.cpp gives a tensor of LLaMA."""
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
             "model.layers.": "blk.", "self_attn.o_proj": "attn_output", "self_attn.": "attn_", "mlp.": "ffn_",
             "post_attention_layernorm": "ffn_norm", "input_layernorm": "attn_norm", "_proj": ""}  # fmt: skip
    for theirs, short in names.items():
        name = name.replace(theirs, short)
    return name


def _permuted(name: str, array, config):
    """Rows of q and k as GGUF has them: the two halves of a head's rotary dimensions interleaved."""
    if "q_proj" not in name and "k_proj" not in name:
        return array
    half = config.head_dim // 2
    return array.reshape(-1, 2, half, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
