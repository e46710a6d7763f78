"""The committed tables, figures and REPORT.md are what the workflow makes of the committed records.

All of it is taken from HEAD, so that a study that was run meanwhile, and its REPORT.md, are nobody's mistake. Another
CPU rounds otherwise: numbers of tables agree within a relative 1e-5 or an absolute 1e-9, those of the report and of
figures within one unit of their last digit, and everything else to the letter.
"""

import io
import json
import math
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
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
    """Tables, figures and details of a study."""
    paths = [*folder.glob("*.csv"), folder / "provenance.json", folder / "details.md", *folder.glob("figures/*.*g")]
    return sorted(str(path.relative_to(folder)) for path in paths)


def table_noise(old: str, new: str) -> bool:
    """Return whether two numbers of a table differ by no more than rounding."""
    return math.isclose(float(old), float(new), rel_tol=1e-5, abs_tol=1e-9) and not (old + new).isdigit()


def last_digit(old: str, new: str) -> bool:
    """Return whether two numbers of a text differ by no more than a unit of the last digit that both have."""
    decimals = min(len(one.partition("e")[0].partition(".")[2]) for one in (old, new))
    return abs(float(old) - float(new)) <= 1.001 * 10.0 ** (int(old.partition("e")[2] or 0) - decimals)


def same(old: str, new: str, alike: Callable[[str, str], bool]) -> bool:
    """Return whether two texts differ in numbers that are ``alike`` alone; names of parts of an SVG are hashes."""
    old, new = (re.sub(r"\b[mp][0-9a-f]{10}\b", "id", text) for text in (old, new))
    pairs = zip(NUMBER.findall(old), NUMBER.findall(new))
    return NUMBER.sub("#", old) == NUMBER.sub("#", new) and all(a == b or alike(a, b) for a, b in pairs)


COMPARED = {
    ".csv": lambda old, new: same(old.read_text(), new.read_text(), table_noise),
    ".svg": lambda old, new: same(old.read_text(), new.read_text(), last_digit),
    ".md": lambda old, new: same(old.read_text(), new.read_text(), last_digit),
    ".json": lambda old, new: json.loads(old.read_text()) == json.loads(new.read_text()),
    ".png": lambda old, new: new.stat().st_size > 1000,  # pixels are compressed: nothing else can be compared
}


@pytest.mark.parametrize("study", STUDIES)
def test_tables_and_figures_are_those_of_the_records(committed, made, study):
    old, new = committed / "results" / study, made / "results" / study
    names = names_in(old)
    assert len(names) > 15 and names == names_in(new)
    stale = [name for name in names if not COMPARED[Path(name).suffix](old / name, new / name)]
    assert not stale, f"make them again: snakemake --cores 1 {' '.join(STUDIES[study])} measure=nothing"


def test_the_report_is_that_of_the_tables(committed, made):
    old, new = ((folder / "REPORT.md").read_text().splitlines() for folder in (committed, made))
    different = [(a, b) for a, b in zip(old, new) if not same(a, b, last_digit)]
    assert not different and len(old) == len(new), different[:3]
