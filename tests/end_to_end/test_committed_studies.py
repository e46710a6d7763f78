"""The committed tables, figures and REPORT.md are what the workflow makes of the committed records, to the byte."""

import filecmp
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pages
import pytest

# study → what Snakemake is told
STUDIES = {"cpu": ["--config", "study=cpu"], "h200": ["--configfile", "config/h200.yaml", "--config"]}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkout in which everything behind the records was made again."""
    folder = pages.workspace(tmp_path_factory.mktemp("checkout"))
    tracked = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "results", "REPORT.md"],
        cwd=pages.REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in tracked.stdout.splitlines():
        behind = "/records/" not in name and not name.endswith(("/provenance.json", "REPORT.md"))
        if not behind and (pages.REPOSITORY / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(pages.REPOSITORY / name, folder / name)
    for told in STUDIES.values():
        command = [sys.executable, "-m", "snakemake", "--cores", "2", "--forceall", *told, "measure=nothing"]
        run = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=900, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return folder


def committed(checkout: Path, study: str) -> list[str]:
    """Tables and figures of a study, relative to the checkout."""
    folder = checkout / "results" / study
    files = [*folder.glob("*.csv"), folder / "provenance.json", *folder.glob("figures/*.svg")]
    return sorted(str(path.relative_to(checkout)) for path in files)


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_tables_and_figures_are_those_of_the_records(made, study):
    names = committed(pages.REPOSITORY, study)
    assert len(names) > 25 and names == committed(made, study)
    stale = [name for name in names if not filecmp.cmp(made / name, pages.REPOSITORY / name, shallow=False)]
    assert not stale, f"make them again: snakemake --cores 1 {' '.join(STUDIES[study])} measure=nothing"


@pytest.mark.slow
def test_the_report_is_that_of_the_tables(made):
    ours, theirs = (Path(folder, "REPORT.md").read_text().splitlines() for folder in (pages.REPOSITORY, made))
    different = [(old, new) for old, new in zip(ours, theirs) if old != new]
    assert not different and len(ours) == len(theirs), different[:3]
