"""Two studies of the same configurations, for instance before and after a library upgrade.

Every configuration, workload, corpus and protocol that both studies have is compared:

- TPOT and TTFT: ratio of geometric means over processes, Student's t with the noise shared over both studies;
- PPL, KL divergence, top-1 agreement: paired by token through the per-token arrays, where both studies kept them for
  the same tokens; else from the intervals in the tables (unpaired, hence much wider);
- memory: the peak on a GPU, which repeats; on a CPU the weights, since the peak of a process is one reading of a noisy
  quantity. Neither has a sampling error, so the limit alone decides;
- status: a configuration that was ``ok`` and is not any more (or is gone, lost a figure or a process, or was measured
  on another text) is always a failure.

A change is significant if its p-value, adjusted by Holm's method over all comparisons of the same quantity, is below
0.05. A limit is exceeded by a significant change for the worse that is larger than the limit. Where nothing was
repeated no change of speed can be significant; ``note`` then mentions a change beyond the limit. A perplexity without
an interval (too short a text) is decided by its limit alone: what a few documents lose may well be lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from llmstudy.errors import StudyError
from llmstudy.stats.bootstrap import bootstrap_mean, document_blocks
from llmstudy.stats.estimate import Estimate, Z, holm, log_error, normal_p, without_interval
from llmstudy.stats.processes import ratio
from llmstudy.tables.columns import CONFIGURATION, PROTOCOL, WORKLOAD, read_table
from llmstudy.tables.memory import peak_gib
from llmstudy.tables.phrases import number, percent
from llmstudy.tables.speed import SharedNoise, shared_noise
from llmstudy.tables.verdict import SIGNIFICANCE

KEYS = {
    "processes.csv": CONFIGURATION + WORKLOAD,
    "memory.csv": CONFIGURATION + WORKLOAD,
    "quality.csv": CONFIGURATION + PROTOCOL,
}
TIMES = ("tpot_ms", "ttft_ms")
# column of quality.csv: key of the arrays, ends of its interval, unit of a change
QUALITIES = {
    "ppl": ("nll", "ppl_low", "ppl_high", "percent"),
    "kl_nats": ("kl", "kl_low_nats", "kl_high_nats", "nats"),
    "top1_agreement": ("top1", "top1_low", "top1_high", "share"),
}
LIMITED = {
    "tpot_ms": "tpot_percent",
    "memory_gib": "memory_percent",
    "weights_gib": "memory_percent",
    "ppl": "ppl_percent",
}
WITHOUT_ERROR = ("memory_gib", "weights_gib")
COLUMNS = [
    "quantity",
    *(*CONFIGURATION, *WORKLOAD, *PROTOCOL),
    *("baseline", "candidate", "change", "change_low", "change_high", "unit", "method"),
    *("p_holm", "significant", "limit", "exceeded", "note"),
]


@dataclass(frozen=True)
class Studies:
    """The folders of two studies, and the noise of each time between processes, shared by both."""

    before: Path
    after: Path
    noise: Mapping[str, SharedNoise]


def compare(before: Path, after: Path, limits: Mapping[str, float | None]) -> tuple[pd.DataFrame, list[str]]:
    """Compare the tables of two finished studies.

    Args:
        before: Folder with processes.csv, memory.csv and quality.csv, and with the per-token arrays in
            ``records/quality/<model>/`` where quality can be paired.
        after: Folder of the other study.
        limits: Largest allowed change for the worse in percent: ``tpot_percent``, ``memory_percent``, ``ppl_percent``;
            None or absent means no limit.

    Returns:
        The table of all comparisons (``change`` is in percent, for KL in nats and for agreement in points of 0 … 1),
        and a sentence per exceeded limit. The comparison fails if there are any.

    Raises:
        StudyError: A table is missing, or nothing was measured before.
    """
    rows = []
    for file, keys in KEYS.items():
        tables = [_read(folder, file, keys) for folder in (before, after)]
        studies = Studies(before, after, _noise(tables) if file == "processes.csv" else {})
        for key, old, new in _matched(*tables, keys):
            changes = COMPARED[file](old, new, studies) if new["status"].eq("ok").any() else [_lost(new)]
            rows += [dict(zip(keys, key)) | row for row in changes]
    if not rows:
        raise StudyError(f"{before}: nothing was measured there, so there is nothing to compare with")
    table = _judged(pd.DataFrame(rows).reindex(columns=[*COLUMNS, "p"]), limits)
    return table[COLUMNS], [_failure(row) for _, row in table[table["exceeded"]].iterrows()]


def _judged(table: pd.DataFrame, limits: Mapping[str, float | None]) -> pd.DataFrame:
    """Return the table with its columns of significance and limits filled in."""
    table["p_holm"] = table.groupby("quantity")["p"].transform(lambda p: holm(p.to_numpy(dtype=float)))
    table["significant"] = table["p_holm"] < SIGNIFICANCE
    table["limit"] = [limits.get(LIMITED.get(quantity, "")) for quantity in table["quantity"]]
    table["limit"] = table["limit"].astype(float)
    decided = table["significant"] | table["quantity"].isin(WITHOUT_ERROR)
    decided |= (table["quantity"] == "ppl") & table["p"].isna()
    beyond = table["change"] > table["limit"]
    table["exceeded"] = (table["quantity"] == "status") | (decided & beyond)
    table.loc[beyond & ~decided, "note"] = "beyond the limit, but not significant"
    return table


def _read(folder: Path, file: str, keys: list[str]) -> pd.DataFrame:
    path = Path(folder) / file
    if not path.exists():
        raise StudyError(f"{path}: no such table; run the study {Path(folder).name} first")
    table = read_table(path)
    missing = [column for column in [*keys, "status", "reason"] if column not in table]
    if missing:
        raise StudyError(f"{path}: column {missing[0]} is missing")
    return table


def _matched(
    before: pd.DataFrame, after: pd.DataFrame, keys: list[str]
) -> Iterator[tuple[tuple, pd.DataFrame, pd.DataFrame]]:
    """Yield each key that was measured before, with its rows of status ok there and all its rows after."""
    groups = dict(list(after.groupby(keys)))
    for key, old in before[before["status"] == "ok"].groupby(keys, sort=False):
        yield key, old, groups.get(key, after.iloc[:0])


def _noise(tables: list[pd.DataFrame]) -> dict[str, SharedNoise]:
    """Return the noise of each time from the processes of both studies, which may have the same name."""
    both = pd.concat([table.assign(study=side) for side, table in enumerate(tables)])
    return {quantity: shared_noise(both, quantity) for quantity in TIMES}


def _status(note: str) -> dict:
    return {"quantity": "status", "note": note}


def _lost(after: pd.DataFrame) -> dict:
    if after.empty:
        return _status("ok before, missing now")
    first = after.iloc[0]
    return _status(f"ok before, {first['status']} now: {first['reason']}")


def _gone(quantity: str, before: float, after: float) -> list[dict]:
    """Return the failure of a candidate that has no figure where the baseline has one."""
    return [_status(f"{quantity} was {number(before)}, {after} now")] if math.isfinite(before) else []


def _row(quantity: str, before: float, after: float, change: Estimate, unit: str, method: str) -> dict:
    """Return a row. A change in percent comes as a ratio after / before."""
    ends = [change.value, change.low, change.high]
    if unit == "percent":
        ends = [(end - 1) * 100 for end in ends]
    columns = {"quantity": quantity, "baseline": before, "candidate": after, "p": change.p}
    changes = dict(zip(("change", "change_low", "change_high"), ends))
    return columns | changes | {"unit": unit, "method": method, "note": ""}


def _compare_times(before: pd.DataFrame, after: pd.DataFrame, studies: Studies) -> list[dict]:
    failed, after = after[after["status"] != "ok"], after[after["status"] == "ok"]
    rows = []
    if len(failed):
        first = failed.iloc[0]
        share = f"{len(failed)} of {len(failed) + len(after)} processes"
        rows.append(_status(f"{share} {first['status']} now: {first['reason']}"))
    for quantity in TIMES:
        noise = studies.noise[quantity].of(before.iloc[0])
        means = [float(np.exp(np.log(side[quantity]).mean())) for side in (before, after)]
        if all(map(math.isfinite, means)):
            change = ratio(after[quantity], before[quantity], noise, noise)
            rows.append(_row(quantity, *means, change, "percent", "between processes"))
        else:
            rows += _gone(quantity, *means)
    return rows


def _compare_memory(before: pd.DataFrame, after: pd.DataFrame, studies: Studies) -> list[dict]:
    on_cpu = before["device"].iloc[0] == "cpu"
    quantity = "weights_gib" if on_cpu else "memory_gib"
    sides = (before, after[after["status"] == "ok"])
    sizes = [(side["weights_gib"] if on_cpu else peak_gib(side)).max() for side in sides]
    if not all(map(math.isfinite, sizes)):
        return _gone(quantity, *sizes)
    return [_row(quantity, *sizes, without_interval(sizes[1] / sizes[0]), "percent", "one value per study")]


def _compare_quality(before: pd.DataFrame, after: pd.DataFrame, studies: Studies) -> list[dict]:
    old, new = before.iloc[0], after[after["status"] == "ok"].iloc[0]
    if is_other_text(old, new):
        return [_status("not the text of the baseline: measure both again with the same corpus")]
    arrays = _paired_arrays(old, new, studies)
    rows = []
    for quantity, (name, low, high, unit) in QUALITIES.items():
        values = old.get(quantity, math.nan), new.get(quantity, math.nan)
        if not all(map(math.isfinite, values)):
            rows += _gone(quantity, *values)
            continue
        if arrays and all(name in side for side in arrays) and arrays[0][name].shape == arrays[1][name].shape:
            difference = arrays[1][name].astype(np.float64) - arrays[0][name].astype(np.float64)
            # KL and agreement may cover the first part of the text alone
            blocks = document_blocks(arrays[0]["document"][: len(difference)])
            change, method = bootstrap_mean(difference, blocks), f"paired, {blocks.label}"
        else:
            ends = [(row.get(low, math.nan), row.get(high, math.nan)) for row in (old, new)]
            change, method = _from_tables(quantity, values, ends), "from the tables"
        rows.append(_row(quantity, *values, change.exp() if quantity == "ppl" else change, unit, method))
    return rows


def is_other_text(old: pd.Series, new: pd.Series) -> bool:
    """Return whether two rows of quality.csv certainly scored different texts."""
    sizes = [[row.get(column, math.nan) for column in ("tokens", "words", "utf8_bytes")] for row in (old, new)]
    return any(before != after for before, after in zip(*sizes) if not (math.isnan(before) or math.isnan(after)))


def _paired_arrays(old: pd.Series, new: pd.Series, studies: Studies) -> list[dict] | None:
    """Return the per-token arrays of a corpus and protocol in both studies; None unless both have the same tokens."""
    prefix = f"{old['corpus']}/{old['protocol']}/"
    sides = []
    for row, folder in ((old, studies.before), (new, studies.after)):
        records = Path(folder) / "records" / "quality" / row["model"]
        paths = sorted(records.glob(f"{row['precision']}.{row['attention']}.{row['runtime']}.r*.npz"))
        if not paths or not paths[0].stat().st_size:
            return None
        with np.load(paths[0]) as stored:
            sides.append({key.removeprefix(prefix): stored[key] for key in stored.files if key.startswith(prefix)})
    documents = [side.get("document") for side in sides]
    if any(ids is None for ids in documents) or not np.array_equal(*documents):
        return None
    return sides


def _from_tables(quantity: str, values: tuple[float, float], ends: list[tuple[float, float]]) -> Estimate:
    """Return the change between two independent values with intervals: of ln PPL, else of the quantity itself."""
    old, new = values
    if quantity == "ppl":
        difference, se = math.log(new / old), math.hypot(*(log_error(*pair) for pair in ends))
    else:
        difference, se = new - old, math.hypot(*((high - low) / (2 * Z) for low, high in ends))
    if math.isnan(se):
        return without_interval(difference)
    return Estimate(difference, difference - Z * se, difference + Z * se, se, normal_p(difference, se))


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


COMPARED = {"processes.csv": _compare_times, "memory.csv": _compare_memory, "quality.csv": _compare_quality}
