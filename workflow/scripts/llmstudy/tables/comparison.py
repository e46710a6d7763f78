"""The comparison of two studies as a table, and a line for each change past its limit."""

from __future__ import annotations

from pathlib import Path

from llmstudy.errors import StudyError
from llmstudy.files import atomic_write
from llmstudy.tables.compare import compare_studies


def write(baseline: str | None, candidate: str | None, limits: dict, table: Path, failures: Path) -> None:
    """Compare ``results/<baseline>`` with ``results/<candidate>``.

    limits  per cent: ``tpot_percent``, ``memory_percent``, ``ppl_percent``; None sets no limit
    """
    for key, name in (("baseline", baseline), ("candidate", candidate)):
        if not name:
            raise StudyError(f"{key}: None is not a study; name both: --config baseline=<study> candidate=<study>")
    found, lines = compare_studies(Path("results") / baseline, Path("results") / candidate, limits)
    with atomic_write(table) as file:
        found.to_csv(file, index=False, float_format="%.6g")
    with atomic_write(failures) as file:
        file.writelines(f"{line}\n" for line in lines)
