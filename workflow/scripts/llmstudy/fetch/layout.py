"""The files of a model folder, repository or wheel that are used, and the headers of its safetensors.

Standard library only: what a job needs is estimated from the headers while the workflow is parsed.
"""

import json
import math
import re
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from llmstudy.errors import StudyError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
OPTIONAL = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
            "merges.txt", "chat_template.jinja", "chat_template.json")  # fmt: skip
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".msgpack", ".h5")
GIT_LFS = b"version https://git-lfs"
# What a change of makes a folder another model: not its README.
READ_IN_PLACE = (".safetensors", ".gguf", ".json", ".model", ".txt", ".jinja")
# The longest sequence in config.json; GPT-2 has names of its own.
CONTEXT_KEYS = ("max_position_embeddings", "n_positions")


class Stored(NamedTuple):
    """A tensor in a safetensors file: the file's name, the format's name of the dtype, shape, first and last byte."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def choose_files(names: Iterable[str], where: str, read: Callable[[str], str]) -> list[str]:
    """Return the names of the files to use, sorted; those in sub-folders are other formats of the same weights.

    Args:
        names: paths relative to the folder or repository ``where``.
        where: the folder or repository, for errors.
        read: returns the text of one of the small files.

    Raises:
        StudyError: there are no safetensors (with a line for pickled weights, a LoRA adapter, a folder of checkpoints
            and safetensors of other names), no ``config.json`` or no tokenizer.
    """
    names = set(names)
    weights = _weight_files(names, where, read)
    if "config.json" not in names:
        raise StudyError(f"{where}: no config.json, so the architecture of the weights is unknown")
    if names.isdisjoint(TOKENIZERS):
        raise StudyError(f"{where}: no tokenizer; needed beside the weights: one of {', '.join(TOKENIZERS)}")
    return sorted([*weights, "config.json", *names.intersection(TOKENIZERS), *names.intersection(OPTIONAL)])


def _weight_files(names: set[str], where: str, read: Callable[[str], str]) -> list[str]:
    checkpoints = sorted(name.partition("/")[0] for name in names if re.fullmatch(r"checkpoint-\d+/config.json", name))
    adapters = sorted(name for name in names if re.fullmatch(rf"(checkpoint-\d+/)?{ADAPTER}", name))
    if ADAPTER in names or (adapters and names.isdisjoint((WEIGHTS, INDEX))):
        base = json.loads(read(adapters[-1])).get("base_model_name_or_path") or "a model that it does not name"
        raise StudyError(
            f"{where}: a LoRA adapter of {base}; merge it first (merge_and_unload) and bring the merged model alone"
        )
    if WEIGHTS in names:
        return [WEIGHTS]
    if INDEX in names:
        shards = _shards(read(INDEX), f"{where}: {INDEX}")
        if missing := sorted(set(shards) - names):
            raise StudyError(f"{where}: {missing[0]} is missing, though {INDEX} names it; fetch the weights again")
        return [INDEX, *shards]
    if checkpoints:
        raise StudyError(f"{where}: a folder of training checkpoints; name one of them: {', '.join(checkpoints[:3])}")
    if others := sorted(name for name in names if name.endswith(".safetensors") and "/" not in name):
        raise StudyError(
            f"{where}: holds safetensors under other names ({', '.join(others[:3])}); read are {WEIGHTS}, or the files "
            f"that {INDEX} names; rename a single file, or save the model with save_pretrained"
        )
    if pickled := sorted(name for name in names if name.endswith(PICKLED)):
        raise StudyError(
            f"{where}: holds pickled weights only ({', '.join(pickled[:3])}), which can run code when they are loaded; "
            "use a revision or a conversion with safetensors"
        )
    raise StudyError(f"{where}: holds neither {WEIGHTS} nor {INDEX}; only safetensors and GGUF weights are read")


def _shards(index: str, where: str) -> list[str]:
    """Return the files that an index names, sorted."""
    try:
        shards = sorted(set(json.loads(index)["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise StudyError(f"{where}: not an index of safetensors files ({error}); fetch it again") from error
    if outside := [name for name in shards if Path(name).name != name]:
        raise StudyError(f"{where}: names {outside[0]!r}, which is outside its folder; refused")
    return shards


def tensors(folder: Path) -> dict[str, Stored]:
    """Return every tensor in a folder's safetensors files, from their headers; raise StudyError if a file is missing,
    cut short or not safetensors."""
    single, index = folder / WEIGHTS, folder / INDEX
    shards = (
        _shards(index.read_text(encoding="utf-8"), str(index)) if index.exists() and not single.exists() else [WEIGHTS]
    )
    return {name: stored for shard in shards for name, stored in _header(folder / shard).items()}


def _header(path: Path) -> dict[str, Stored]:
    """Return the tensors of one file: 8 bytes with the length of a JSON header, the header, the data."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            first = file.read(8)
            if GIT_LFS.startswith(first):
                raise StudyError(f"{path}: a pointer of Git LFS, not the weights; run git lfs pull")
            length = 8 + struct.unpack("<Q", first)[0]
            if length > size:
                raise ValueError(f"{size} bytes, its header alone has {length}")
            described = json.loads(file.read(length - 8))
        described.pop("__metadata__", None)
        found = {
            name: Stored(path.name, one["dtype"], tuple(one["shape"]), *(length + end for end in one["data_offsets"]))
            for name, one in described.items()
        }
        needed = max((stored.end for stored in found.values()), default=length)
        if needed != size:
            raise ValueError(f"{size} bytes, its header says {needed}")
    except FileNotFoundError as error:
        raise StudyError(f"{path}: missing; fetch the weights again") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise StudyError(f"{path}: cut short or not safetensors ({error}); fetch the weights again") from error
    return found


def count_parameters(folder: Path) -> int:
    """Return the number of stored numbers, from the headers alone."""
    return sum(math.prod(stored.shape) for stored in tensors(folder).values())


def contexts(config: dict[str, Any]) -> tuple[int | None, int | None]:
    """Return the longest sequence of a config.json in tokens, and the longest that its rope scaling allows.

    YaRN and linear scaling stretch a model beyond ``max_position_embeddings``, which often keeps the length before.
    """
    config = config.get("text_config") or config
    longest = next((config[key] for key in CONTEXT_KEYS if config.get(key)), None)
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    original = rope.get("original_max_position_embeddings") or longest
    factor = rope.get("factor") if rope.get("rope_type", rope.get("type")) in ("yarn", "linear", "dynamic") else 1
    return longest, max(longest, int(original * (factor or 1))) if longest else None


def fingerprint(source: dict[str, Any]) -> list[list[Any]]:
    """Return name, bytes and time of writing of each file that a ``path`` source reads in place, for Snakemake to fetch
    it again when one was replaced; nothing for the other sources, whose files nobody else writes."""
    if source["type"] != "path":
        return []
    given = Path(source["folder"]).expanduser()
    folder, wanted = (given.parent, given.name) if given.is_file() else (given, source.get("file") or "")
    # Of the GGUF files in a folder, the one that is read and the other parts of it.
    stem = re.sub(r"-\d+-of-\d+\.gguf$", "", wanted, flags=re.I)
    files = [path for path in sorted(folder.iterdir()) if path.name.startswith(stem)] if folder.is_dir() else []
    about = [(path.name, path.stat()) for path in files if path.name.lower().endswith(READ_IN_PLACE) and path.is_file()]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in about]
