"""Checkpoints that were published quantized: refused as 16-bit weights, and compared with the model they stand beside.

Standard library only where the workflow is parsed: ``method`` and ``refuse_quantized``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmstudy.errors import StudyError

# Sizes that a quantization does not change; some pad the intermediate size.
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")
SAMPLE = (
    "The quick brown fox, 1 234 567.89 times; naïve façades – „Straße“, Ελλάδα, Россия, 中文, 日本語, हिन्दी, 😀\n\n"
    "def f(x):\n    return {'a': x ** 2}  # tabs\tand   spaces\nhttps://example.org/?q=1&r=%20 DON'T don't I'll"
)


def method(folder: Path) -> str:
    """Return the quantization method that a folder's config.json names; empty without one, or without the file."""
    with suppress(OSError, ValueError, AttributeError):
        named = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config")
        return (named.get("quant_method") or "bitsandbytes") if named else ""
    return ""  # fetching reports it


def refuse_quantized(name: str, method: str) -> None:
    """Raise StudyError if a method quantized the weights of model ``name``: they are those of no other precision."""
    if method:
        raise StudyError(
            f"models: {name}: its weights are already quantized ({method}); precisions may be [as-published] alone; "
            "put the 16-bit original here and this one under checkpoints"
        )


def require_same_model(original: tuple[Mapping[str, Any], Path], checkpoint: tuple[Mapping[str, Any], Path]) -> None:
    """Raise StudyError unless a checkpoint has the sizes and the token ids of its original: the same ids go into both,
    and their probabilities are compared id by id. Each is a manifest and the folder of the files."""
    from transformers import AutoTokenizer

    (first, original_folder), (second, folder) = original, checkpoint
    wrong = f"models: {second['name']}: not a checkpoint of the model that it stands beside"
    for key in SIZES:
        if (its := second["architecture"].get(key)) != (there := first["architecture"].get(key)):
            raise StudyError(f"{wrong}: {key} is {its}, and {there} there")
    one, other = (AutoTokenizer.from_pretrained(path, local_files_only=True) for path in (original_folder, folder))
    known = other.get_vocab()
    for token, number in one.get_vocab().items():
        if known.get(token) != number:
            raise StudyError(f"{wrong}: token {token!r} has another id, and what follows it cannot be compared")
    if one(SAMPLE, add_special_tokens=False)["input_ids"] != other(SAMPLE, add_special_tokens=False)["input_ids"]:
        raise StudyError(f"{wrong}: a text gets other token ids, and cannot be compared")
