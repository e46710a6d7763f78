"""Two studies of the same configurations, for instance before and after a library upgrade.

Every configuration, workload, corpus and protocol that both studies have is compared:

- TPOT and TTFT: ratio of geometric means over processes, Student's t from the spread of each side's processes. The two
  studies are two sittings: what changed beside the code (clocks, other work) is in the ratio too;
- PPL, KL divergence, top-1 agreement: paired by token through the per-token arrays, where both studies kept them for
  the same tokens; else from the intervals in the tables (unpaired, hence much wider);
- memory: ``memory_gib`` of probes.csv, which has no sampling error, so the limit alone decides;
- status: a configuration that was ``ok`` and is not any more (or is gone, lost a figure or a process, or was measured
  on another text) is always a failure.

A change is significant if its p-value, adjusted by Holm's method over all comparisons of the same quantity, is below
0.05. A limit is exceeded by a significant change for the worse that is larger than the limit. Where nothing was
repeated no change of speed can be significant; ``note`` then mentions a change beyond the limit. A perplexity without
an interval (too short a text) is decided by its limit alone: what a few documents lose may well be lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from llmstudy.errors import StudyError
from llmstudy.stats.estimate import CONFIDENCE, Estimate, critical_value, holm, without_interval
from llmstudy.stats.processes import ratio, student_interval
from llmstudy.stats.quality import bootstrap_mean, document_blocks
from llmstudy.tables.columns import CONFIGURATION, PROTOCOL, WORKLOAD, number, percent, read_table
from llmstudy.tables.processes import once
from llmstudy.tables.records import read_arrays
from llmstudy.tables.speed import geometric_mean

TIMES = ("tpot_ms", "ttft_ms")
SIGNIFICANCE = 1 - CONFIDENCE
# column of quality.csv: key of the arrays, ends of its interval
QUALITIES = {
    "ppl": ("nll", "ppl_low", "ppl_high"),
    "kl_nats": ("kl", "kl_low_nats", "kl_high_nats"),
    "top1_agreement": ("top1", "top1_low", "top1_high"),
}
UNITS = {"kl_nats": "nats", "top1_agreement": "share"}  # of others percent
LIMITED = {"tpot_ms": "tpot", "memory_gib": "memory", "ppl": "ppl"}
COLUMNS = ["quantity", *CONFIGURATION, *WORKLOAD, *PROTOCOL, "baseline", "candidate", "change", "change_low"]
COLUMNS += ["change_high", "unit", "method", "p_holm", "significant", "limit", "exceeded", "note"]


def compare(before: Path, after: Path, limits: Mapping[str, float | None]) -> tuple[pd.DataFrame, list[str]]:
    """Return the table of all comparisons of two finished studies (``change`` is in percent, for KL in nats and for
    agreement in points of 0 … 1), and a sentence per exceeded limit: the comparison fails if there are any.

    Both folders have processes.csv, probes.csv and quality.csv, and the arrays in ``records/quality/<model>/`` where
    quality can be paired. ``limits`` has the largest allowed changes for the worse, ``tpot_percent``,
    ``memory_percent`` and ``ppl_percent``; None or absent means no limit. Raise StudyError if a table is missing or
    nothing was measured before.
    """
    folders = Path(before), Path(after)
    processes, probes, quality = (
        [_read(folder / file, [*CONFIGURATION, *keys, "status", "reason"]) for folder in folders]
        for file, keys in (
            ("processes.csv", [*WORKLOAD, "process", "again"]),
            ("probes.csv", WORKLOAD),
            ("quality.csv", PROTOCOL),
        )
    )
    rows = _rows([once(table) for table in processes], WORKLOAD, _times) + _rows(probes, WORKLOAD, _memory)
    rows += _rows(quality, PROTOCOL, lambda *sides: _quality(*sides, folders))
    if not rows:
        raise StudyError(f"{before}: nothing was measured there, so there is nothing to compare with")
    table = pd.DataFrame(rows).reindex(columns=[*COLUMNS, "p"])
    table["p_holm"] = table.groupby("quantity")["p"].transform(lambda p: holm(p.to_numpy(dtype=float)))
    table["significant"] = table["p_holm"] < SIGNIFICANCE
    table["limit"] = [limits.get(f"{LIMITED.get(quantity)}_percent") for quantity in table["quantity"]]
    table["limit"] = table["limit"].astype(float)
    decided = table["significant"] | (table["p"].isna() & table["quantity"].isin(["ppl", "memory_gib"]))
    beyond = table["change"] > table["limit"]
    table["exceeded"] = (table["quantity"] == "status") | (decided & beyond)
    table.loc[beyond & ~decided, "note"] = "beyond the limit, but not significant"
    return table[COLUMNS], [_failure(row) for _, row in table[table["exceeded"]].iterrows()]


def _read(path: Path, needed: list[str]) -> pd.DataFrame:
    if not path.exists():
        raise StudyError(f"{path}: no such table; run the study {path.parent.name} first")
    table = read_table(path)
    if missing := [column for column in needed if column not in table]:
        raise StudyError(f"{path}: column {missing[0]} is missing")
    return table


def _rows(tables: list[pd.DataFrame], keys: list[str], changes) -> list[dict]:
    """Return the ``changes`` from what was ok before to what is ok now, at every configuration and value of ``keys``
    that was; for what is not any more its status."""
    before, after = tables
    keys = [*CONFIGURATION, *keys]
    groups = dict(list(after.groupby(keys)))
    rows = []
    for key, old in before[before["status"] == "ok"].groupby(keys, sort=False):
        now = groups.get(key, after.iloc[:0])
        new, failed = now[now["status"] == "ok"], now[now["status"] != "ok"]
        if now.empty:
            found = [_status("ok before, missing now")]
        else:
            subject = f"{len(failed)} of {len(now)} processes" if len(new) else "ok before,"
            found = [_status(f"{subject} {row.status} now: {row.reason}") for row in failed[:1].itertuples()]
            found += changes(old, new) if len(new) else []
        rows += [dict(zip(keys, key)) | row for row in found]
    return rows


def _status(note: str) -> dict:
    return {"quantity": "status", "note": note}


def _change(quantity: str, before: float, after: float, change: Estimate, method: str) -> list[dict]:
    """Return a change, which comes as a ratio after / before where it is in percent; the failure of a candidate without
    the figure of its baseline; nothing where the baseline has none."""
    if not math.isfinite(before):
        return []
    if not math.isfinite(after):
        return [_status(f"{quantity} was {number(before)}, {after} now")]
    unit = UNITS.get(quantity, "percent")
    ends = [(end - 1) * 100 if unit == "percent" else end for end in (change.value, change.low, change.high)]
    row = {"quantity": quantity, "baseline": before, "candidate": after, "p": change.p, "note": ""}
    return [row | dict(zip(("change", "change_low", "change_high"), ends)) | {"unit": unit, "method": method}]


def _times(before: pd.DataFrame, after: pd.DataFrame) -> list[dict]:
    rows = []
    for quantity in TIMES:
        means = [geometric_mean(side[quantity]) for side in (before, after)]
        change = ratio(after[quantity], before[quantity])
        rows += _change(quantity, *means, change, "between processes")
    return rows


def _memory(before: pd.DataFrame, after: pd.DataFrame) -> list[dict]:
    old, new = (side["memory_gib"].max() for side in (before, after))
    return _change("memory_gib", old, new, without_interval(new / old), "one value per study")


def _quality(before: pd.DataFrame, after: pd.DataFrame, folders: tuple[Path, Path]) -> list[dict]:
    rows = before.iloc[0], after.iloc[0]
    sizes = [row.reindex(["tokens", "words", "utf8_bytes"]).astype(float) for row in rows]
    if (sizes[0] - sizes[1]).fillna(0).any():
        return [_status("not the text of the baseline: measure both again with the same corpus")]
    sides = _paired_arrays(rows, folders)
    found = []
    for quantity, (name, *ends) in QUALITIES.items():
        old, new = (side.get(name) for side in sides)
        values = [row.get(quantity, math.nan) for row in rows]
        if old is not None and new is not None and old.shape == new.shape:
            # KL and agreement may cover the first part of the text alone
            blocks = document_blocks(sides[0]["document"][: len(old)])
            change, method = bootstrap_mean(new.astype(float) - old.astype(float), blocks), f"paired, {blocks.label}"
        else:
            numbers = np.array([row.reindex([quantity, *ends]) for row in rows], dtype=float)
            change, method = _unpaired(np.log(numbers) if quantity == "ppl" else numbers), "from the tables"
        found += _change(quantity, *values, change.exp() if quantity == "ppl" else change, method)
    return found


def _paired_arrays(rows: tuple[pd.Series, pd.Series], folders: tuple[Path, Path]) -> list[dict]:
    """Return the per-token arrays of a corpus and protocol in both studies; none unless both have the same tokens."""
    sides = []
    for row, folder in zip(rows, folders):
        name = f"{row['precision']}.{row['attention']}.{row['runtime']}.r*.npz"
        paths = sorted((folder / "records" / "quality" / row["model"]).glob(name))
        sides.append(read_arrays(paths[0], f"{row['corpus']}/{row['protocol']}/") if paths else {})
    same = all("document" in side for side in sides) and np.array_equal(*(side["document"] for side in sides))
    return sides if same else [{}, {}]


def _unpaired(numbers: np.ndarray) -> Estimate:
    """Return the change between two independent values with their ends, float64 (2, 3)."""
    (old, new), low, high = numbers.T
    return student_interval(new - old, math.hypot(*(high - low)) / (2 * critical_value(math.inf)), math.inf)


def _failure(row: pd.Series) -> str:
    at = [f"{column} {row[column]:g}" for column in WORKLOAD if not pd.isna(row[column])]
    at += [str(row[column]) for column in PROTOCOL if not pd.isna(row[column])]
    subject = f"{' '.join(str(row[column]) for column in CONFIGURATION)} ({', '.join(at)})"
    if row["quantity"] == "status":
        return f"{subject}: {row['note']}"
    return (
        f"{subject}: {row['quantity']} {number(row['baseline'])} -> {number(row['candidate'])}, "
        f"{percent(1 + row['change'] / 100)} where {row['limit']:g} % is allowed"
    )
