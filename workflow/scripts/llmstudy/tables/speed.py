"""speed.csv and power.csv; every mean, ratio and interval of a time is computed here.

speed.csv has one row per configuration and workload.

Times are geometric means over the ``processes`` with status ok, ``_min`` and ``_max`` their range: they describe this
sitting. What carries over are ratios, from calls of the same round: ``tpot_speedup``, ``ttft_speedup`` and
``e2e_speedup`` are the time of ``against`` ÷ the own time, with the ends of an interval that is adjusted for all
configurations compared, and a verdict (see ``stats.panels``). ``against`` is the fastest configuration without
quantization at that workload; ``generate_speedup`` is against the reference precision under the library's runtime.
A row with ``again`` is the reference compared with itself: its interval is for it alone. Where two configurations were
in no round together (what does not fit beside others) they are compared through the reference, or between processes.

``bandwidth_gb_s`` is one figure for the device: the best copy or read in any process of the study. ``floor_ms``, the
shortest possible TPOT, is ``step_bytes`` ÷ it, and ``mbu`` the floor ÷ TPOT.

power.csv has one row per model and runtime at the headline workload: in what share of studies with the ``spread`` that
was measured (standard deviation of a process's log ratio to ``against``) and as many ``processes`` and ``comparisons``
a true difference is found to be one. Runtimes of one process or without any spread have no row.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping

import numpy as np
import pandas as pd

from llmstudy.stats import panels
from llmstudy.tables import Sources
from llmstudy.tables.columns import IDENTITY, KEY, SHARED, WORKLOAD, Column, cells, columns, interval, pick, where
from llmstudy.tables.processes import COLUMNS as PROCESSES
from llmstudy.tables.processes import QUANTITIES, rounds

BASE = "base"  # the verdict of the configuration that the others are compared with
OF_PROCESSES = {column.name: column for column in PROCESSES["processes"]}
TIMES = (*QUANTITIES, "tokens_per_s")
DIFFERENCES = (10, 20, 50, 100)  # percent: true ones that power.csv is about
RATIOS = {"tpot": "speed-up of TPOT", "ttft": "speed-up of TTFT", "e2e": "speed-up of a whole call"}
COLUMNS = {
    "speed": [
        *SHARED,
        *pick(OF_PROCESSES.values(), "batch prompt_tokens new_tokens again"),
        *columns("processes:count"),
        *(
            Column(f"{name}{end}", OF_PROCESSES[name].title + end.replace("_", ", "))
            for name in TIMES
            for end in ("", "_min", "_max")
        ),
        *columns("itl_p50_ms itl_p90_ms"),
        Column("bandwidth_gb_s", "bandwidth, GB/s"),
        *pick(OF_PROCESSES.values(), "step_bytes"),
        *columns("mbu:percent floor_ms against:text"),
        *(
            column
            for name, title in RATIOS.items()
            for column in [
                *interval(f"{name}_speedup", f"{name}_speedup_low", f"{name}_speedup_high", title),
                Column(f"{name}_verdict", f"{title.removeprefix('speed-up of ')}, verdict", "text"),
            ]
        ),
        *interval("generate_speedup", "generate_speedup_low", "generate_speedup_high", "speed-up over generate"),
        *columns("flags:text"),
    ],
    "power": [
        *columns("processes:count comparisons:count", SHARED),
        Column("spread", "spread of a ratio", "percent"),
        *(Column(f"finds_{percent}_percent", f"finds {1 + percent / 100:g} ×", "percent") for percent in DIFFERENCES),
    ],
}


def speed(sources: Sources) -> list[dict]:
    """Return a row for every configuration and workload in processes.csv, measured or not."""
    table, study = sources.tables["processes"], sources.study
    margin = study["margin_percent"]["speed"] / 100
    bandwidth = table[["copy_gb_s", "read_gb_s"]].max().max()
    rows = []
    for (model, *_), here in table.groupby(["model", *WORKLOAD], sort=False):
        compared = comparisons(here, study["dense"])
        reference = sources.reference(model)
        for key, own in here.groupby([*KEY, "again"], sort=False):
            measured = ok(own)
            row = own.iloc[0][[*IDENTITY, *WORKLOAD, "again"]].to_dict() | outcome(own)
            row["processes"] = measured["process"].nunique()
            if len(measured):
                row |= times(measured, bandwidth)
                base = key[:-1] if key[-1] == "yes" else compared.base
                row |= ratios(compared, key, base, margin)
                over = next((one for one in compared.keys if one == (reference, key[1], study["runtime"])), None)
                if over and (found := compared.of("tpot_ms", over).get(key)):
                    row |= cells(found, "generate_speedup")
            rows.append(row)
    return rows


def power(sources: Sources) -> list[dict]:
    """Return a row for every model and runtime whose spread at the headline is known."""
    rows = []
    for model, headline in sources.study["headline"].items():
        at_headline = {"model": model} | {name: headline[name] for name in WORKLOAD}
        here = where(sources.tables["processes"], at_headline)
        compared = comparisons(here, sources.study["dense"])
        found = compared.of("tpot_ms", compared.base) if compared.base else {}
        known = {key: one for key, one in found.items() if key[-1] == "no" and one.error > 0}
        for runtime in dict.fromkeys(key[2] for key in known):
            own = sorted((one for key, one in known.items() if key[2] == runtime), key=lambda one: one.processes)
            usual = own[len(own) // 2]
            row = here.iloc[0][IDENTITY].to_dict() | {"precision": "all", "attention": "all", "runtime": runtime}
            row |= {"status": "ok", "reason": "", "processes": usual.processes, "comparisons": len(known)}
            row["spread"] = usual.error * math.sqrt(usual.processes)
            for percent in DIFFERENCES:
                share = panels.power(usual.error, usual.degrees, len(known), 1 + percent / 100)
                row[f"finds_{percent}_percent"] = round(share, 2)
            rows.append(row)
    return rows


class Comparisons:
    """The comparisons of all configurations of a model at one workload, computed once for each base.

    Attributes:
        keys: the measured configurations, (precision, attention, runtime).
        base: the fastest of them without quantization; None if none was measured.
    """

    def __init__(self, blocks: Mapping[str, list[dict]], tpot_ms: Mapping[tuple, float], dense: list[str]):
        self.blocks, self.keys = blocks, list(tpot_ms)
        self.base = min((key for key in tpot_ms if key[0] in dense), key=tpot_ms.get, default=None)
        self._of: dict = {}

    def of(self, quantity: str, base: tuple) -> dict[tuple, panels.Comparison]:
        """Return the comparison of each key, ``again`` at its end, with a base."""
        if (quantity, base) not in self._of:
            family = {key: key[2] for block in self.blocks[quantity] for key in block}
            self._of[quantity, base] = panels.compare(self.blocks[quantity], (*base, "no"), family, again(family))
        return self._of[quantity, base]


def comparisons(here: pd.DataFrame, dense: list[str]) -> Comparisons:
    """Return the comparisons within the rows of processes.csv of one model and workload."""
    measured = ok(here)
    means = {
        key: geometric_mean(own["tpot_ms"]) for key, own in measured[measured["again"] == "no"].groupby(KEY, sort=False)
    }
    return Comparisons({quantity: blocks(measured, quantity) for quantity in QUANTITIES}, means, dense)


def again(keys: Iterable[tuple]) -> list[tuple]:
    """Return those of the reference's second calls."""
    return [key for key in keys if key[-1] == "yes"]


def blocks(measured: pd.DataFrame, quantity: str) -> list[dict[Hashable, np.ndarray]]:
    """Return for each process the times of its configurations by round, NaN in rounds of a group that one was not in:
    those of one round are compared, and a process counts once however many groups it has."""
    found = []
    for _, process in measured.groupby("process", sort=True):
        groups = [
            {
                tuple(row[name] for name in [*KEY, "again"]): np.array(row[rounds(quantity)].split(), dtype=float)
                for row in own.to_dict("records")
            }
            for _, own in process.groupby("group", sort=True)
        ]
        elsewhere = [np.full(len(next(iter(group.values()))), np.nan) for group in groups]
        keys = dict.fromkeys(key for group in groups for key in group)
        found.append({key: np.concatenate([its.get(key, no) for its, no in zip(groups, elsewhere)]) for key in keys})
    return found


def ratios(compared: Comparisons, key: tuple, base: tuple | None, margin: float) -> dict:
    """Return the columns that compare one configuration with its base."""
    if base is None:
        return {}
    columns: dict = {"against": name_of(base)}
    for name in RATIOS:
        if key == (*base, "no"):
            columns |= {f"{name}_speedup": 1.0, f"{name}_verdict": BASE}
        elif found := compared.of(f"{name}_ms", base).get(key):
            columns |= cells(found, f"{name}_speedup") | {f"{name}_verdict": panels.verdict(found, margin)}
    return columns


def name_of(configuration: tuple) -> str:
    """Return the name of a configuration in a table: "bf16 (sdpa, graph)"."""
    return f"{configuration[0]} ({configuration[1]}, {configuration[2]})"


def ok(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that were measured."""
    return rows[rows["status"] == "ok"]


def outcome(rows: pd.DataFrame) -> dict:
    """Return status and reason of repeats: ``ok`` if any is, with a note on those that failed, else the first."""
    failed = rows[rows["status"] != "ok"]
    if failed.empty:
        return {"status": "ok", "reason": ""}
    first = failed.iloc[0][["status", "reason"]].to_dict()
    if len(failed) == len(rows):
        return first
    return {"status": "ok", "reason": f"{len(failed)} of {len(rows)} processes failed ({': '.join(first.values())})"}


def times(measured: pd.DataFrame, bandwidth_gb_s: float) -> dict:
    """Return means, ranges and what follows from them over the measured processes of a configuration."""
    columns: dict = {}
    for name in TIMES:
        columns |= {name: geometric_mean(measured[name]), f"{name}_min": measured[name].min()}
        columns |= {f"{name}_max": measured[name].max()}
    columns |= {name: measured[name].median() for name in ("itl_p50_ms", "itl_p90_ms")}
    step_bytes = int(measured["step_bytes"].median())
    floor_ms = step_bytes / bandwidth_gb_s / 1e6
    words = {word for cell in measured["flags"].dropna() for word in str(cell).split("; ") if word}
    columns |= {"bandwidth_gb_s": bandwidth_gb_s, "step_bytes": step_bytes, "floor_ms": floor_ms}
    return columns | {"mbu": floor_ms / columns["tpot_ms"], "flags": "; ".join(sorted(words))}


def geometric_mean(values: pd.Series) -> float:
    """Return the geometric mean of positive values."""
    return float(np.exp(np.log(values.astype(float)).mean()))
