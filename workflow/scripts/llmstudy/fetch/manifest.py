"""manifest.json: files of a folder, their origin and checksums; written last, it proves that the folder is complete."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmstudy.errors import StudyError
from llmstudy.files import sha256_of, write_json
from llmstudy.progress import progress

MANIFEST = "manifest.json"
SAMPLES, SAMPLE_BYTES = 32, 1 << 16


def begin(folder: Path) -> None:
    """Make the folder and delete an older manifest: from here to ``finish`` the folder counts as incomplete."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)


def finish(folder: Path, content: dict[str, Any], files_folder: Path, names: Iterable[str]) -> None:
    """Write ``content`` and, under ``files``, ``sha256``, ``bytes`` and ``sample`` (a hash of parts, which ``check``
    compares) of each of ``names`` in ``files_folder``, of files that stay in a user's folder ``mtime_ns`` too."""
    names = sorted(names)
    files = {}
    for name in progress(names, f"checksums {content['name']}", unit="files"):
        path = files_folder / name
        about = path.stat()
        files[name] = {"sha256": sha256_of(path), "bytes": about.st_size, "sample": sample_of(path)}
        if files_folder != folder:
            files[name]["mtime_ns"] = about.st_mtime_ns
    write_json(folder / MANIFEST, content | {"files": files})


def sample_of(path: Path) -> str:
    """Return the SHA-256 of ``SAMPLES`` blocks of ``SAMPLE_BYTES`` bytes, spread over a file from its first to its last
    byte; of the whole of a small file."""
    last = max(0, path.stat().st_size - SAMPLE_BYTES)
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for start in sorted({last * number // (SAMPLES - 1) for number in range(SAMPLES)}):
            file.seek(start)
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def digest(content: dict[str, Any]) -> str:
    """Return 16 hexadecimal digits that stand for the weights of a model's manifest, or for what draws random ones."""
    files = [about["sha256"] for name, about in sorted(content["files"].items()) if name.endswith(".safetensors")]
    identity = json.dumps([files, content["seed"], content["architecture"]], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def read(folder: Path) -> dict[str, Any]:
    """Return the manifest in ``folder``; raise StudyError if the fetch did not finish or it is damaged."""
    path = folder / MANIFEST
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StudyError(
            f"{path}: missing, so {folder.name} was not fetched; fetch it where there is network"
        ) from error
    except ValueError as error:
        raise StudyError(f"{path}: not JSON ({error}); delete it and fetch again") from error


def check(files: dict[str, dict[str, Any]], folder: Path) -> None:
    """Raise StudyError if a file in ``folder`` is missing or is not the one that the manifest describes.

    Sizes and samples are compared, which takes milliseconds. A file in a user's folder that was written since is read
    whole, since a sample could miss what changed.
    """
    for name, expected in files.items():
        path = folder / name
        if not path.exists():
            raise StudyError(f"{path}: missing, though manifest.json lists it; fetch again where there is network")
        about = path.stat()
        if about.st_size != expected["bytes"]:
            raise StudyError(
                f"{path}: has {about.st_size} bytes, manifest.json says {expected['bytes']}; fetch it again"
            )
        same = "sample" not in expected or sample_of(path) == expected["sample"]
        if same and about.st_mtime_ns != expected.get("mtime_ns", about.st_mtime_ns):
            same = sha256_of(path) == expected["sha256"]
        if not same:
            raise StudyError(f"{path}: is not the file of manifest.json, it was changed since; run the study again")
