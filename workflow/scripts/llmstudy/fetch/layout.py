"""The files of a model folder, repository or wheel that are used: safetensors, tokenizer and config alone."""

import fnmatch
import json
import math
from collections.abc import Iterable
from pathlib import Path

from llmstudy.errors import StudyError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = "model-*-of-*.safetensors"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
OPTIONAL = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
            "merges.txt", "chat_template.jinja", "chat_template.json")  # fmt: skip
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".msgpack", ".h5")


def choose_files(names: Iterable[str], where: str) -> list[str]:
    """Return the names of the files to use, sorted; those in sub-folders are other formats of the same weights.

    ``names`` are paths relative to the folder or repository ``where``. Raise StudyError if there are no safetensors
    (with a line for pickled weights), no ``config.json`` or no tokenizer.
    """
    names = set(names)
    if WEIGHTS in names:
        weights = [WEIGHTS]
    elif INDEX in names:
        weights = [INDEX, *fnmatch.filter(names, SHARDS)]
    elif pickled := sorted(name for name in names if name.endswith(PICKLED)):
        raise StudyError(
            f"{where}: holds pickled weights only ({', '.join(pickled[:3])}), which can run code when they are loaded; "
            "use a revision or a conversion with safetensors"
        )
    else:
        raise StudyError(f"{where}: holds neither {WEIGHTS} nor {INDEX}; only safetensors and GGUF weights are read")
    if "config.json" not in names:
        raise StudyError(f"{where}: no config.json, so the architecture of the weights is unknown")
    if names.isdisjoint(TOKENIZERS):
        raise StudyError(f"{where}: no tokenizer; needed beside the weights: one of {', '.join(TOKENIZERS)}")
    return sorted([*weights, "config.json", *names.intersection(TOKENIZERS), *names.intersection(OPTIONAL)])


def tensor_files(folder: Path) -> dict[str, str]:
    """Return the safetensors file in ``folder`` that holds each tensor, from the index or the file's header; raise
    StudyError if a file is missing, cut short or not safetensors."""
    from safetensors import SafetensorError, safe_open

    index = folder / INDEX
    if (folder / WEIGHTS).exists() or not index.exists():
        names = [WEIGHTS]
    else:
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise StudyError(f"{index}: not an index of safetensors files ({error}); fetch it again") from error
    files = {}
    for name in names:
        path = folder / name
        if path.parent != folder:
            raise StudyError(f"{index}: names {name!r}, which is outside its folder; refused")
        try:
            with safe_open(path, framework="numpy") as tensors:
                files |= dict.fromkeys(tensors.keys(), name)
        except FileNotFoundError as error:
            raise StudyError(f"{path}: missing; fetch the weights again") from error
        except (SafetensorError, OSError) as error:
            raise StudyError(f"{path}: cut short or not safetensors ({error}); fetch the weights again") from error
    return files


def count_parameters(folder: Path) -> int:
    """Return the number of stored parameters, from the headers alone; a tied tensor that is stored once counts once."""
    from safetensors import safe_open

    total = 0
    for name in sorted(set(tensor_files(folder).values())):
        with safe_open(folder / name, framework="numpy") as tensors:
            total += sum(math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118
    return total
