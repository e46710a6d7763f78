"""The committed tables, figures and REPORT.md are what the workflow makes of the committed records.

All of it is taken from HEAD, so that a study that was run meanwhile, and its REPORT.md, are nobody's mistake. Another
CPU rounds otherwise: numbers of tables agree within a relative 1e-5 or an absolute 1e-9, those of the report and of
figures within one unit of their last digit, and everything else to the letter.
"""

import csv
import io
import json
import math
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from checkout import ROOT, Checkout

pytestmark = pytest.mark.slow

# study → arguments of Snakemake; the report is that of the last
STUDIES = {"cpu": ["--config", "study=cpu"], "h200": ["--configfile=config/h200.yaml", "--config"]}
PARTS = ("Snakefile", "config", "envs", "workflow", "results", "REPORT.md")
NUMBER = re.compile(r"(?<![\w#])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


@pytest.fixture(scope="module")
def committed(tmp_path_factory) -> Path:
    """The files of HEAD."""
    command = ["git", "-c", "safe.directory=*", "archive", "HEAD", "--", *PARTS]
    archive = subprocess.run(command, cwd=ROOT, capture_output=True)
    if archive.returncode:
        pytest.skip(f"no checkout: {archive.stderr.decode()}")
    folder = tmp_path_factory.mktemp("committed")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def made(committed, tmp_path_factory) -> Path:
    """A copy in which everything behind the records is made again."""
    folder = tmp_path_factory.mktemp("made") / "checkout"
    shutil.copytree(committed, folder, ignore=shutil.ignore_patterns("*.csv", "figures"))
    for arguments in STUDIES.values():
        Checkout(folder, copy=None).snakemake("--cores", "2", "--forceall", *arguments, "measure=nothing")
    return folder


def names_in(folder: Path) -> list[str]:
    """Tables and figures of a study."""
    paths = [*folder.glob("*.csv"), folder / "provenance.json", *folder.glob("figures/*")]
    return sorted(str(path.relative_to(folder)) for path in paths)


def is_close(old: str, new: str) -> bool:
    """Whether two cells of a table are the same; whole numbers must be equal."""
    if old == new:
        return True
    try:
        int(old), int(new)
    except ValueError:
        try:
            return math.isclose(float(old), float(new), rel_tol=1e-5, abs_tol=1e-9)
        except ValueError:
            pass
    return False


def is_same_text(old: str, new: str) -> bool:
    """Whether two texts differ in nothing but one unit in the last digit of numbers."""
    if NUMBER.sub("#", old) != NUMBER.sub("#", new):
        return False
    for a, b in zip(NUMBER.findall(old), NUMBER.findall(new), strict=True):
        unit = 10.0 ** -min(len(one.partition("e")[0].partition(".")[2]) for one in (a, b))
        scale = 10.0 ** int(a.partition("e")[2] or 0)
        if a != b and abs(float(a) - float(b)) > 1.001 * unit * scale:
            return False
    return True


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("study", STUDIES)
def test_tables_and_figures_are_those_of_the_records(committed, made, study):
    old, new = committed / "results" / study, made / "results" / study
    names = names_in(old)
    assert len(names) > 25 and names == names_in(new)
    stale = []
    for name in names:
        before, after = old / name, new / name
        if name.endswith(".csv"):
            a, b = rows(before), rows(after)
            same = [len(row) for row in a] == [len(row) for row in b]
            same = same and all(map(is_close, sum(a, []), sum(b, [])))
        elif name.endswith(".svg"):
            same = is_same_text(without_ids(before.read_text()), without_ids(after.read_text()))
        elif name.endswith(".json"):
            same = json.loads(before.read_text()) == json.loads(after.read_text())
        else:
            same = after.stat().st_size > 1000  # pixels are compressed: nothing but their number can be compared
        if not same:
            stale.append(name)
    assert not stale, f"make them again: snakemake --cores 1 {' '.join(STUDIES[study])} measure=nothing"


def without_ids(svg: str) -> str:
    """A figure without the names of its parts, which are hashes of what is in them."""
    return re.sub(r"\b[mp][0-9a-f]{10}\b", "id", svg)


def test_the_report_is_that_of_the_tables(committed, made):
    old, new = ((folder / "REPORT.md").read_text().splitlines() for folder in (committed, made))
    different = [(a, b) for a, b in zip(old, new) if not is_same_text(a, b)]
    assert not different and len(old) == len(new), different[:3]


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("TPOT 1.24 ms, 12 %", "TPOT 1.25 ms, 12 %", True),
        ("TPOT 1.24 ms", "TPOT 1.26 ms", False),
        ("3e-05 nats", "2e-05 nats", True),
        ("fill: #8da0cb", "fill: #8da0ca", False),
        ("`bf16` 7", "`fp16` 7", False),
        ("1,234.5 tokens", "1,234.6 tokens", True),
    ],
)
def test_texts_agree_within_the_last_digit(old, new, same):
    assert is_same_text(old, new) == same
