"""Dequantizing GGUF files to safetensors, so that every precision starts from the same full-precision weights."""

import re
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from llmstudy.errors import StudyError
from llmstudy.fetch import rope
from llmstudy.files import disk_full_named, publish

GGUF = ".gguf"
PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)  # of a model that is split into several files
PROJECTOR = "mmproj"  # the image encoder of a multimodal model, which lies beside it
# Layers of the Gemma 2 and 3 of 27B, whose attention scale is in no GGUF file: 1 / √(hidden / heads), where the other
# sizes have 1 / √(head width).
GEMMA_27B = {"gemma2": 46, "gemma3_text": 62}


def choose(names: Iterable[str], wanted: str | None, where: str) -> list[str]:
    """Return the GGUF file to use among ``names``, or the parts of a split one in order; [] if there is none.

    Args:
        names: paths relative to the folder or repository ``where``.
        wanted: the one to take (key ``file`` of the source), of a split one any part; None takes the only one.
        where: the folder or repository, for messages.

    Raises:
        StudyError: no such file, several and none ``wanted``, or a missing part; it lists the files.
    """
    names = sorted(names)
    if wanted is not None and wanted not in names:
        raise StudyError(f"{where}: no file {wanted!r} (key file); it holds {', '.join(names) or 'nothing'}")
    models: dict[tuple[str, str], list[str]] = {}
    for name in names:
        if name.lower().endswith(GGUF) and (name == wanted or PROJECTOR not in name.rpartition("/")[2].lower()):
            part = PART.fullmatch(name)
            models.setdefault((part[1], part[3]) if part else (name, "00001"), []).append(name)
    found = [model for model in models.items() if wanted is None or wanted in model[1]]
    if wanted is not None and not found:
        raise StudyError(f"{where}: {wanted!r} (key file) is not a GGUF file; without the key safetensors are read")
    if len(found) > 1:
        choices = ", ".join(parts[0] for _, parts in found)
        raise StudyError(f"{where}: holds {len(found)} GGUF models; choose one with the source's key file: {choices}")
    for (name, count), parts in found:
        if len(parts) != int(count):
            raise StudyError(f"{where}: {name} has {count} parts, here are {len(parts)}: {', '.join(parts)}")
    return found[0][1] if found else []


def dequantize(files: list[Path], folder: Path, context: int | None) -> str:
    """Write the weights (fp32 safetensors), config and tokenizer of a GGUF file into ``folder``.

    The weights are stored in fp32, twice the size of bf16, because only that is exact: a Q4_1 weight is
    ``scale * q + minimum`` with fp16 scale and minimum and a 4-bit q, so it has some 15 significant bits, of which bf16
    keeps 8, and the study's reference would not be the published model.

    Args:
        files: the GGUF file, or the parts of a split one in order.
        folder: folder of the written files; each gets its name only when it is whole.
        context: tokens for the tokenizer's ``model_max_length``; None takes the GGUF's.

    Returns:
        A sentence on the types that the weights were published in, for the manifest.

    Raises:
        StudyError: the file is not GGUF, is cut short, or has an architecture, tensors or rotary positions that
            transformers cannot read; the disk is full.
    """
    if len(files) == 1:
        return _dequantize(files[0], folder, context)
    with disk_full_named(folder), tempfile.TemporaryDirectory(prefix=".joined-", dir=folder) as temporary:
        return _dequantize(_join(files, Path(temporary)), folder, context)


def _join(files: list[Path], folder: Path) -> Path:
    """Write the parts of a split GGUF file, whose first part has the metadata, as one file; return its path."""
    from gguf import GGUFWriter
    from gguf.scripts.gguf_new_metadata import copy_with_new_metadata

    readers = list(map(_reader, files))
    if (whole := readers[0]).get_field("split.no") is None:
        raise StudyError(f"{files[0]}: not the first part of a split GGUF file, as its name says; fetch it again")
    whole.tensors = [tensor for reader in readers for tensor in reader.tensors]
    if len(whole.tensors) != (expected := whole.get_field("split.tensors.count").contents()):
        raise StudyError(
            f"{files[0]}: its parts hold {len(whole.tensors)} tensors, it says {expected}; fetch them again"
        )
    target = folder / files[0].name
    writer = GGUFWriter(target, whole.get_field("general.architecture").contents())
    copy_with_new_metadata(whole, writer, {}, ["split.no", "split.count", "split.tensors.count"])
    return target


def _dequantize(file: Path, folder: Path, context: int | None) -> str:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    reader = _reader(file)
    types = ", ".join(
        f"{number} {name}" for name, number in Counter(t.tensor_type.name for t in reader.tensors).most_common()
    )
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=False,
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    except Exception as error:  # the type of the error depends on the damaged bytes
        raise StudyError(f"{file.name}: GGUF that transformers cannot load ({_first_line(error)})") from error
    if missing := sorted(loading["missing_keys"]):
        raise StudyError(f"{file.name}: incomplete GGUF, {len(missing)} tensors missing, {missing[0]} among them")
    if unknown := _unplaced(reader, model):
        raise StudyError(
            f"{file.name}: {type(model).__name__} of transformers has no place for {len(unknown)} tensors of this GGUF "
            f"file, {unknown[0]} among them; use the safetensors of this model"
        )
    _restore_attention(reader, model.config)
    rope.restore(reader, model, file.name)
    tokenizer.model_max_length = context or model.config.max_position_embeddings
    with disk_full_named(folder), tempfile.TemporaryDirectory(prefix=".save-", dir=folder) as whole:
        model.save_pretrained(whole, max_shard_size="4GB")
        tokenizer.save_pretrained(whole)
        for saved in Path(whole).iterdir():
            publish(saved, folder / saved.name)
    return f"weights published as GGUF ({types}) and dequantized to fp32: the study's original is that quantized model"


def _unplaced(reader, model) -> list[str]:
    """Return the tensors that the loader of transformers passes over without a word."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    architecture = reader.get_field("general.architecture").contents()
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
    places = get_gguf_hf_weights_map(model, processor)
    return [tensor.name for tensor in reader.tensors if tensor.name not in places and tensor.name not in rope.TENSORS]


def _restore_attention(reader, config) -> None:
    """Write into the config what GGUF says, or leaves to the program, and the loader of transformers drops."""
    architecture = reader.get_field("general.architecture").contents()
    if hasattr(config, "sliding_window") and (window := reader.get_field(f"{architecture}.attention.sliding_window")):
        config.sliding_window = window.contents() or None
    if GEMMA_27B.get(config.model_type) == config.num_hidden_layers:
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads


def _reader(file: Path):
    """Return ``gguf.GGUFReader`` of a file; raise StudyError if it is cut short or no GGUF."""
    from gguf import GGUFReader

    try:
        return GGUFReader(file)
    except Exception as error:  # the type of the error depends on the damaged bytes
        raise StudyError(f"{file}: corrupt or not a GGUF file ({_first_line(error)}); fetch it again") from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
