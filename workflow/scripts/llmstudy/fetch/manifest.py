"""manifest.json: files of a folder, their origin and checksums; written last, it proves that the folder is complete."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmstudy.errors import StudyError
from llmstudy.files import sha256_of, write_json
from llmstudy.progress import progress

MANIFEST = "manifest.json"


def begin(folder: Path) -> None:
    """Make the folder and delete an older manifest: from here to ``finish`` the folder counts as incomplete."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)


def finish(folder: Path, content: dict[str, Any], files_folder: Path, names: Iterable[str]) -> None:
    """Write ``content`` and, under ``files``, SHA-256 and bytes of each of ``names`` in ``files_folder``."""
    names = sorted(names)
    files = {
        name: {"sha256": sha256_of(files_folder / name), "bytes": (files_folder / name).stat().st_size}
        for name in progress(names, f"checksums {content['name']}", unit="files")
    }
    write_json(folder / MANIFEST, content | {"files": files})


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
    """Raise StudyError if a file in ``folder`` is missing or has another size than the manifest says; checksums were
    compared when fetching."""
    for name, expected in files.items():
        path = folder / name
        if not path.exists():
            raise StudyError(f"{path}: missing, though manifest.json lists it; fetch again where there is network")
        if (size := path.stat().st_size) != expected["bytes"]:
            raise StudyError(f"{path}: has {size} bytes, manifest.json says {expected['bytes']}; fetch it again")
