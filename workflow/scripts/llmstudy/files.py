"""Files that are either whole or absent: atomic writes, checksums, and disk-full errors that name the file."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from llmstudy.errors import StudyError

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
DISK_FULL_TEXTS = ("No space left on device", "Disk quota exceeded", "File too large", "not enough free disk space")


@contextlib.contextmanager
def disk_full_named(path: Path) -> Iterator[None]:
    """Turn "the disk is full" into one line that names ``path`` and the space left; other errors pass.

    Libraries in Rust (safetensors, tokenizers) carry the system's message in exceptions of their own types, so the text
    is searched where there is no ``errno``.

    Raises:
        StudyError: the body failed because no space, quota or file size was left.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, StudyError):
            raise
        if getattr(error, "errno", None) in DISK_FULL or any(text in str(error) for text in DISK_FULL_TEXTS):
            folder = next((parent for parent in Path(path).absolute().parents if parent.exists()), Path("/"))
            free = shutil.disk_usage(folder).free / 2**20
            raise StudyError(
                f"{path}: cannot be written, the disk is full ({free:.1f} MiB free in {folder}) or a quota is reached; "
                "free some space and run again"
            ) from error
        raise


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path`` that takes its name only after the body ended without an exception.

    Text is UTF-8 with ``\\n`` line ends; ``mode`` is ``"w"``, or ``"wb"`` for bytes. The data is on the disk (fsync)
    before the name changes, so a reader, even after a power cut, sees the old file or the whole new one.

    Raises:
        StudyError: the disk is full; ``path`` is as it was before.
    """
    path = Path(path)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    with disk_full_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        try:
            with os.fdopen(descriptor, mode, **text) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            publish(Path(temporary), path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def publish(temporary: Path, path: Path) -> None:
    """Give a finished temporary file its name, and the permissions that the user's umask gives a new file.

    ``mkstemp`` and safetensors make files for their owner alone, but a cluster's users share fetched weights.
    """
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(temporary, 0o666 & ~umask)
    os.replace(temporary, path)


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON, atomically; NaN and infinity are refused (ValueError)."""
    with atomic_write(path) as file:
        json.dump(content, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in lower-case hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shared_file(name: str) -> Path:
    """Return a file or folder that the library shares with the workflow (``schemas/…``, ``report``).

    It is below ``workflow/`` in a checkout, below ``shared`` of the package where pip installed it.
    """
    package = Path(__file__).resolve().parent
    checkout, installed = package.parents[1] / name, package / "shared" / name
    return checkout if checkout.exists() else installed
