"""The table of tasks in the report: accuracy and flips per task, and a task that failed."""

import dataclasses

import hand_made
import pytest
from llmstudy.report import quality
from llmstudy.report import study as studies


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return studies.load(hand_made.write_study(tmp_path_factory.mktemp("results") / "default", models=("smollm2-135m",)))


def cells(study) -> dict[tuple[str, str], list[str]]:
    """Cells of the rows by task and precision."""
    lines = quality.tasks(study, "smollm2-135m").splitlines()[2:]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]
    return {(row[0], row[1]): row[2:] for row in rows}


def test_every_precision_stands_under_its_task_with_its_flips(study):
    found = cells(study)
    assert list(found) == [(task, name) for task in ("arc_easy", "my_task") for name in ("bf16", "nf4")]
    share = "60.0 %<br>[55.6 %, 64.2 %]"
    assert found[("arc_easy", "bf16")] == ["500", share, "n/a", "n/a", "n/a", "n/a", "n/a"]
    assert found[("arc_easy", "nf4")][2:] == ["-6.0<br>[-9.3, -2.7]", "83", "51", "21", "0.0011"]


def test_a_task_that_failed_says_why(study):
    assert cells(study)[("my_task", "nf4")] == ["error`: task my\\_task: no data set", *["error"] * 6]


def test_a_study_without_tasks_has_no_table(study):
    assert quality.tasks(dataclasses.replace(study, tables={}), "smollm2-135m") is None
