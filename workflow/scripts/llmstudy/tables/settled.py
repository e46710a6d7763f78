"""The end of measuring: one more panel is needed while the verdicts at the first workload are not settled."""

from __future__ import annotations

from pathlib import Path

ENOUGH = "settled by {} panels: no verdict at the first workload needs more"
# Panels between two looks at the verdicts. Each look is a chance of a false difference (tests/test_decisions.py): with
# two panels between looks up to the ninth 5 to 6 % of studies of equal configurations find one, with one panel 8 %.
STEP = 2
NO_TIME = "the {} minutes for panels are used up"


def reason(paths: list[Path], settings: dict) -> str | None:
    """Return why a panel is not needed after those whose records are at ``paths``; None if it is.

    ``settings`` are those of the panel's job; ``until`` has the minimum, the margin, the minutes and the precisions
    without quantization, with the fastest of which the others are compared, as in speed.csv.
    """
    # Imported here: every measuring job comes through this module, and only a panel's needs pandas.
    import pandas as pd

    from llmstudy.stats import panels
    from llmstudy.tables import Sources
    from llmstudy.tables.columns import where
    from llmstudy.tables.processes import processes
    from llmstudy.tables.records import read_records
    from llmstudy.tables.speed import comparisons, ok

    records = read_records(map(str, paths))
    if records[-1]["status"] == "skipped":
        return records[-1]["reason"]
    seconds = [record["provenance"].get("wall_s", 0) - record["provenance"].get("waited_s", 0) for record in records]
    if sum(seconds) + seconds[-1] > 60 * settings["until"]["minutes"]:
        return NO_TIME.format(f"{settings['until']['minutes']:g}")
    table = pd.DataFrame(processes(Sources(records, {}, {})))
    here = where(table, settings["workloads"][0])
    if ok(here).empty:
        return "no configuration was measured by the panels before"
    if (len(records) - settings["until"]["minimum"]) % STEP:
        return None
    compared = comparisons(here, settings["until"]["dense"])
    margin = settings["until"]["margin_percent"] / 100
    found = compared.of("tpot_ms", compared.base) if compared.base else {}
    verdicts = [panels.verdict(one, margin) for key, one in found.items() if key[-1] == "no"]
    return None if "not enough data" in verdicts else ENOUGH.format(len(records))
