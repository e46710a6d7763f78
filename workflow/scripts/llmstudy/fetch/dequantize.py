"""Dequantizing GGUF files to safetensors, so that every precision starts from the same full-precision weights."""

import tempfile
from collections import Counter
from pathlib import Path

from llmstudy.errors import StudyError
from llmstudy.files import disk_full_named, publish


def dequantize(file: Path, folder: Path, context: int | None) -> str:
    """Write the weights (fp32 safetensors), config and tokenizer of a GGUF file into ``folder``.

    The weights are stored in fp32, twice the size of bf16, because only that is exact: a Q4_1 weight is
    ``scale * q + minimum`` with fp16 scale and minimum and a 4-bit q, so it has some 15 significant bits, of which bf16
    keeps 8, and the study's reference would not be the published model.

    Args:
        file: the GGUF file.
        folder: folder of the written files; each gets its name only when it is whole.
        context: tokens for the tokenizer's ``model_max_length``; None takes the GGUF's.

    Returns:
        A sentence on the types that the weights were published in, for the manifest.

    Raises:
        StudyError: the file is not GGUF, is cut short, or has an architecture that transformers cannot read; the disk
            is full.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    types = _tensor_types(file)
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
    tokenizer.model_max_length = context or model.config.max_position_embeddings
    with disk_full_named(folder), tempfile.TemporaryDirectory(prefix=".save-", dir=folder) as whole:
        model.save_pretrained(whole, max_shard_size="4GB")
        tokenizer.save_pretrained(whole)
        for saved in Path(whole).iterdir():
            publish(saved, folder / saved.name)
    return f"weights published as GGUF ({types}) and dequantized to fp32: the study's original is that quantized model"


def _tensor_types(file: Path) -> str:
    """Return the tensor types in the file with their number, the most frequent first; raise StudyError if it is cut
    short."""
    from gguf import GGUFReader

    try:
        tensors = GGUFReader(file).tensors
    except Exception as error:  # the type of the error depends on the damaged bytes
        raise StudyError(f"{file}: corrupt or not a GGUF file ({_first_line(error)}); fetch it again") from error
    return ", ".join(f"{number} {name}" for name, number in Counter(t.tensor_type.name for t in tensors).most_common())


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
