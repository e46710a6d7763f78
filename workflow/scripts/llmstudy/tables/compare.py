"""Two studies of the same configurations, for instance before and after a library upgrade.

Every configuration, workload, corpus and protocol that both studies have is compared:

- TPOT and TTFT: ratio of geometric means over repeats, Student's t with the noise shared over both studies;
- PPL, KL divergence, top-1 agreement: paired by token through the per-token arrays, where both studies kept them for
  the same tokens; else from the intervals in the tables (unpaired, hence much wider);
- memory: the peak on a GPU, which repeats; on a CPU the weights, since the peak of a process is one reading of a noisy
  quantity. Neither has a sampling error, so the limit alone decides;
- status: a configuration that was `ok` and is not any more (or is gone, lost a figure or a process, or was measured on
  another text) is always a failure.

A change is significant if its p-value, adjusted by Holm's method over all comparisons of the same quantity, is below
0.05. A limit is exceeded by a significant change for the worse that is larger than the limit. Where nothing was
repeated no change of speed can be significant; `note` then tells of a change beyond the limit. A perplexity without an
interval (too short a text) is decided by its limit alone: what a few documents lose may well be lost.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from llmstudy.errors import StudyError
from llmstudy.stats.bootstrap import bootstrap_mean, document_blocks
from llmstudy.stats.capacity import peak_gib
from llmstudy.stats.estimate import Estimate, Z, log_error, p_of_zero, without_interval
from llmstudy.stats.multiplicity import holm
from llmstudy.stats.processes import ratio
from llmstudy.tables.columns import CONFIGURATION, PROTOCOL, WORKLOAD, text
from llmstudy.tables.noise import SharedNoise, shared_noise
from llmstudy.tables.phrases import number, percent
from llmstudy.tables.verdict import SIGNIFICANCE

KEYS = {
    "processes.csv": CONFIGURATION + WORKLOAD,
    "memory.csv": CONFIGURATION + WORKLOAD,
    "quality.csv": CONFIGURATION + PROTOCOL,
}
TIMES = ("tpot_ms", "ttft_ms")
LIMITED = {
    "tpot_ms": "tpot_percent",
    "memory_gib": "memory_percent",
    "weights_gib": "memory_percent",
    "ppl": "ppl_percent",
}
WITHOUT_ERROR = ("memory_gib", "weights_gib")
COLUMNS = [
    "quantity",
    *CONFIGURATION,
    *WORKLOAD,
    *PROTOCOL,
    "baseline",
    "candidate",
    "change",
    "change_low",
    "change_high",
    "unit",
    "method",
    "p_holm",
    "significant",
    "limit",
    "exceeded",
    "note",
]


@dataclass(frozen=True)
class Studies:
    """The folders that are compared, and the noise of each time between processes, shared by both."""

    baseline: Path
    candidate: Path
    noise: Mapping[str, SharedNoise]


def compare_studies(
    baseline: Path, candidate: Path, limits: Mapping[str, float | None]
) -> tuple[pd.DataFrame, list[str]]:
    """Compare the tables of two studies.

    `baseline`, `candidate`: folders with `processes.csv`, `memory.csv` and `quality.csv`, and with the per-token arrays
    in `records/quality/<model>/<precision>.<attention>.<runtime>.r<repeat>.npz` (keys
    `<corpus>/<protocol>/<quantity>` for `nll`, `kl`, `top1` and `document`) if quality is to be paired. `limits`:
    largest allowed change for the worse in percent, keys `tpot_percent`, `memory_percent`, `ppl_percent`; None or
    absent means no limit.

    Returns the table of all comparisons (`change` is in percent, for KL in nats and for agreement in points of 0..1;
    `significant` marks those that are) and one sentence per exceeded limit; the comparison fails if there are any.
    Raises StudyError if a table is missing or the baseline measured nothing.
    """
    rows = []
    for file, keys in KEYS.items():
        tables = [_read(folder, file, keys) for folder in (baseline, candidate)]
        noise = _noise(tables) if file == "processes.csv" else {}
        for key, before, after in _matched(*tables, keys):
            if after["status"].eq("ok").any():
                compared = COMPARED[file](before, after, Studies(baseline, candidate, noise))
            else:
                compared = [_lost(after)]
            rows += [dict(zip(keys, key)) | row for row in compared]
    if not rows:
        raise StudyError(f"{baseline}: nothing was measured there, so there is nothing to compare with")
    table = pd.DataFrame(rows).reindex(columns=[*COLUMNS, "p"])
    table["p_holm"] = table.groupby("quantity")["p"].transform(lambda p: holm(p.to_numpy(dtype=float)))
    table["significant"] = table["p_holm"] < SIGNIFICANCE
    table["note"] = text(table["note"])
    table["limit"] = [limits.get(LIMITED.get(quantity, "")) for quantity in table["quantity"]]
    table["limit"] = table["limit"].astype(float)
    real = table["significant"] | table["quantity"].isin(WITHOUT_ERROR)
    real |= (table["quantity"] == "ppl") & table["p"].isna()
    beyond = table["change"] > table["limit"]
    table["exceeded"] = (table["quantity"] == "status") | (real & beyond)
    table.loc[beyond & ~real, "note"] = "beyond the limit, but not significant"
    return table[COLUMNS], [_failure(row) for _, row in table[table["exceeded"]].iterrows()]


def _read(folder: Path, file: str, keys: list[str]) -> pd.DataFrame:
    path = Path(folder) / file
    if not path.exists():
        raise StudyError(f"{path}: no such table; run the study {Path(folder).name} first")
    table = pd.read_csv(path)
    missing = [column for column in [*keys, "status"] if column not in table]
    if missing:
        raise StudyError(f"{path}: column {missing[0]} is missing")
    return table.assign(reason=text(table["reason"])) if "reason" in table else table


def _matched(
    baseline: pd.DataFrame, candidate: pd.DataFrame, keys: list[str]
) -> Iterator[tuple[tuple, pd.DataFrame, pd.DataFrame]]:
    """Each key measured in the baseline, with its rows there (status ok) and all its rows in the candidate."""
    after = dict(list(candidate.groupby(keys)))
    for key, before in baseline[baseline["status"] == "ok"].groupby(keys, sort=False):
        yield key, before, after.get(key, candidate.iloc[:0])


def _noise(tables: list[pd.DataFrame]) -> dict[str, SharedNoise]:
    """Noise of each time, from the repeats of both studies, which may have the same name."""
    both = pd.concat([table.assign(study=side) for side, table in enumerate(tables)])
    return {quantity: shared_noise(both, quantity) for quantity in TIMES}


def _lost(after: pd.DataFrame) -> dict:
    if after.empty:
        return {"quantity": "status", "note": "ok before, missing now"}
    first = after.iloc[0]
    return {"quantity": "status", "note": f"ok before, {first['status']} now: {first.get('reason', '')}"}


def _ratio_row(quantity: str, before: float, after: float, change: Estimate, method: str) -> dict:
    """A row whose change is a ratio candidate / baseline, shown in percent."""
    changes = [(value - 1) * 100 for value in (change.value, change.low, change.high)]
    return _row(quantity, before, after, changes, change.p, "percent", method)


def _row(quantity: str, before: float, after: float, change: list[float], p: float, unit: str, method: str) -> dict:
    names = ("change", "change_low", "change_high")
    found = {"quantity": quantity, "baseline": before, "candidate": after, "p": p, "unit": unit, "method": method}
    return found | dict(zip(names, change))


def _latency(before: pd.DataFrame, after: pd.DataFrame, studies: Studies) -> list[dict]:
    failed, after = after[after["status"] != "ok"], after[after["status"] == "ok"]
    rows = []
    if len(failed):
        first = failed.iloc[0]
        told = f"{len(failed)} of {len(failed) + len(after)} processes {first['status']} now"
        rows.append({"quantity": "status", "note": f"{told}: {first.get('reason', '')}"})
    for quantity in TIMES:
        noise = studies.noise[quantity].of(before.iloc[0])
        change = ratio(after[quantity], before[quantity], noise, noise)
        middle = [float(np.exp(np.log(side[quantity]).mean())) for side in (before, after)]
        if all(map(math.isfinite, middle)):
            rows.append(_ratio_row(quantity, *middle, change, "between processes"))
        else:
            rows += _gone(quantity, *middle)
    return rows


def _memory(before: pd.DataFrame, after: pd.DataFrame, studies: Studies) -> list[dict]:
    quantity = "weights_gib" if before["device"].iloc[0] == "cpu" else "memory_gib"
    sizes = [
        (side["weights_gib"] if quantity == "weights_gib" else peak_gib(side)).max()
        for side in (before, after[after["status"] == "ok"])
    ]
    if not all(map(math.isfinite, sizes)):
        return _gone(quantity, *sizes)
    return [_ratio_row(quantity, *sizes, without_interval(sizes[1] / sizes[0]), "one value per study")]


def _gone(quantity: str, before: float, after: float) -> list[dict]:
    """The failure of a candidate that has no figure where the baseline has one."""
    if not math.isfinite(before):
        return []
    return [{"quantity": "status", "note": f"{quantity} was {number(before)}, {after} now"}]


def _quality(before: pd.DataFrame, after: pd.DataFrame, studies: Studies) -> list[dict]:
    old, new = before.iloc[0], after[after["status"] == "ok"].iloc[0]
    if other_text(old, new):
        return [{"quantity": "status", "note": "not the text of the baseline: measure both again with the same corpus"}]
    arrays = _paired_arrays(old, new, studies)
    rows = []
    for quantity, name, unit in (
        ("ppl", "nll", "percent"),
        ("kl_nats", "kl", "nats"),
        ("top1_agreement", "top1", "share"),
    ):
        values = old.get(quantity, math.nan), new.get(quantity, math.nan)
        if not all(map(math.isfinite, values)):
            rows += _gone(quantity, *values)
            continue
        if arrays and all(name in side for side in arrays) and arrays[0][name].shape == arrays[1][name].shape:
            difference = arrays[1][name].astype(np.float64) - arrays[0][name].astype(np.float64)
            # KL and agreement may cover the first part of the text only
            blocks = document_blocks(arrays[0]["document"][: len(difference)])
            change, method = bootstrap_mean(difference, blocks), f"paired, {blocks.label}"
        else:
            change, method = _from_tables(quantity, old, new), "from the tables"
        if quantity == "ppl":
            rows.append(_ratio_row(quantity, *values, change.exp(), method))
        else:
            ends = [change.value, change.low, change.high]
            rows.append(_row(quantity, *values, ends, change.p, unit, method))
    return rows


def other_text(old: pd.Series, new: pd.Series) -> bool:
    """Whether two rows of quality.csv certainly scored different texts."""
    sizes = [[row.get(column, math.nan) for column in ("tokens", "words", "utf8_bytes")] for row in (old, new)]
    return any(before != after for before, after in zip(*sizes) if not (math.isnan(before) or math.isnan(after)))


def _paired_arrays(old: pd.Series, new: pd.Series, studies: Studies) -> list[dict] | None:
    """Per-token arrays of this corpus and protocol in both studies; None unless both are there for the same tokens."""
    prefix = f"{old['corpus']}/{old['protocol']}/"
    sides = []
    for row, folder in ((old, studies.baseline), (new, studies.candidate)):
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


def _from_tables(quantity: str, old: pd.Series, new: pd.Series) -> Estimate:
    """Change from two table rows with intervals taken as independent: of ln PPL, else of the quantity itself."""
    stem = {"kl_nats": "kl", "top1_agreement": "top1", "ppl": "ppl"}[quantity]
    suffix = "_nats" if stem == "kl" else ""
    ends = [(row.get(f"{stem}_low{suffix}", math.nan), row.get(f"{stem}_high{suffix}", math.nan)) for row in (old, new)]
    if quantity == "ppl":
        difference = math.log(new[quantity] / old[quantity])
        se = math.hypot(*(log_error(*pair) for pair in ends))
    else:
        difference = new[quantity] - old[quantity]
        se = math.hypot(*((high - low) / (2 * Z) for low, high in ends))
    if math.isnan(se):
        return without_interval(difference)
    return Estimate(difference, difference - Z * se, difference + Z * se, se, p_of_zero(difference, se))


def _failure(row: pd.Series) -> str:
    where = " ".join(str(row[column]) for column in CONFIGURATION)
    place = [f"{column} {row[column]:g}" for column in WORKLOAD if not pd.isna(row[column])]
    place += [str(row[column]) for column in PROTOCOL if not pd.isna(row[column])]
    where = f"{where} ({', '.join(place)})"
    if row["quantity"] == "status":
        return f"{where}: {row['note']}"
    return (
        f"{where}: {row['quantity']} {number(row['baseline'])} -> {number(row['candidate'])}, "
        f"{percent(1 + row['change'] / 100)} where {row['limit']:g} % is allowed"
    )


COMPARED = {"processes.csv": _latency, "memory.csv": _memory, "quality.csv": _quality}
