"""Atomic files, checksums, disk-full errors and the progress lines."""

import errno
import io
import json
import os
import resource
import signal
import stat
import subprocess
import sys

import pytest
from llmstudy.errors import StudyError
from llmstudy.files import atomic_write, disk_full_named, sha256_of, write_json
from llmstudy.progress import progress


@pytest.fixture
def small_disk(tmp_path):
    """A folder in which no more than 64 KiB can be written: a tmpfs for root, else a limit on the size of a file."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0:
        yield folder
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, before[1]))
    yield folder
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with atomic_write(path) as file:
        file.write("naïve\n")
        assert not path.exists()
    assert path.read_bytes() == "naïve\n".encode()
    with pytest.raises(KeyError), atomic_write(path) as file:
        file.write("half")
        raise KeyError
    assert path.read_bytes() == "naïve\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_json_is_for_whom_the_umask_allows_and_without_nan(tmp_path):
    path = tmp_path / "a.json"
    before = os.umask(0o027)
    try:
        write_json(path, {"x": 1.5})
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    with pytest.raises(ValueError):
        write_json(path, {"x": float("nan")})
    assert json.loads(path.read_text()) == {"x": 1.5}


def test_sha256_is_that_of_the_standard(tmp_path):
    # FIPS 180-2, appendix B.1
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_full_disk_names_the_file_and_leaves_nothing(small_disk):
    path = small_disk / "text.jsonl"
    write_json(path, "old")
    message = r"text\.jsonl: cannot be written, the disk is full \(.* MiB free"
    with pytest.raises(StudyError, match=message), atomic_write(path, "wb") as file:
        file.write(bytes(200_000))
    assert json.loads(path.read_text()) == "old"
    assert [entry.name for entry in small_disk.iterdir()] == ["text.jsonl"]


def test_full_disk_is_seen_in_the_errors_of_safetensors(small_disk):
    import torch
    from safetensors.torch import save_file

    path = small_disk / "model.safetensors"
    with pytest.raises(StudyError, match="disk is full"), disk_full_named(path):
        save_file({"x": torch.zeros(100_000)}, path)


def test_full_disk_is_known_by_its_number_in_any_language_and_other_errors_pass(tmp_path):
    with pytest.raises(StudyError, match="disk is full"), disk_full_named(tmp_path / "x"):
        raise OSError(errno.ENOSPC, "Auf dem Gerät ist kein Speicherplatz mehr verfügbar")
    with pytest.raises(PermissionError), disk_full_named(tmp_path):
        raise PermissionError(13, "Permission denied")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_lines_in_a_log_and_a_bar_on_a_terminal_beside_it(monkeypatch):
    log, terminal = io.StringIO(), Terminal()
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(sys, "__stderr__", terminal)
    assert list(progress(range(7), "quality wikipedia", unit="windows")) == list(range(7))
    assert log.getvalue().splitlines()[-1].startswith("quality wikipedia: 7/7 windows in ")
    assert list(progress(iter("abc"), "download", total=3, unit="files")) == ["a", "b", "c"]
    assert "download: 3/3 files" in log.getvalue() and "\r" not in log.getvalue()
    assert "3/3" in terminal.getvalue()
