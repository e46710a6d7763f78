"""Which rows of the tables a figure or a table of the report speaks of."""

from __future__ import annotations

import pandas as pd

from llmstudy.report.study import Study
from llmstudy.stats.processes import process_interval
from llmstudy.stats.estimate import critical_value
from llmstudy.tables.columns import CONFIGURATION, WORKLOAD
from llmstudy.tables.memory import nearest_workload
from llmstudy.tables.speed import SharedNoise, shared_noise

INTERVALS = ("ttft_ms", "tpot_ms", "e2e_ms", "tokens_per_s")  # with an interval over processes
CARRIED = ["weights", "device", "bandwidth_gb_s", "step_bytes", "joules_per_token"]


def at_headline(study: Study, table: str) -> pd.DataFrame:
    """Rows of processes.csv or memory.csv at each model's workload of summary.csv."""
    frame = study.table(table)
    if frame.empty:
        return frame
    return pd.concat(
        [rows[of_workload(rows, study.headline(model))] for model, rows in frame.groupby("model", sort=False)]
    )


def of_workload(rows: pd.DataFrame, workload: dict) -> pd.Series:
    """Whether each row belongs to a workload, or to the nearest to it in these rows (of memory, which knows fewer)."""
    workload = nearest_workload(rows, workload)
    same = pd.Series(True, index=rows.index)
    for column in WORKLOAD:
        same &= rows[column] == workload[column]
    return same


def over_repeats(study: Study, rows: pd.DataFrame) -> pd.DataFrame:
    """One row per configuration and workload with status ok: geometric means and 95 % intervals over processes.

    ``rows``: of the study's processes.csv. Adds ``<quantity>_low`` and ``<quantity>_high`` to each of INTERVALS, with the
    noise of the whole study as in summary.csv, and ``mbu``; CARRIED columns are medians or the first text.
    """
    ok = rows[rows["status"] == "ok"] if len(rows) else rows
    if ok.empty:
        return pd.DataFrame()
    noise = {quantity: shared_noise(study.table("processes"), quantity) for quantity in INTERVALS}
    groups = ok.groupby([*CONFIGURATION, *WORKLOAD], sort=False)
    return pd.DataFrame([_over_processes(key, repeats, noise) for key, repeats in groups])


def _over_processes(key: tuple, repeats: pd.DataFrame, noise: dict[str, SharedNoise]) -> dict:
    row = dict(zip([*CONFIGURATION, *WORKLOAD], key)) | {"repeats": len(repeats)}
    for column in CARRIED:
        numeric = pd.api.types.is_numeric_dtype(repeats[column])
        row[column] = repeats[column].median() if numeric else repeats[column].iloc[0]
    row["mbu"] = process_interval(repeats["mbu"]).value
    for quantity in INTERVALS:
        found = process_interval(repeats[quantity], noise[quantity].of(row))
        row |= {quantity: found.value, f"{quantity}_low": found.low, f"{quantity}_high": found.high}
    return row


def fastest(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Of each group the measured row with the least TPOT; the first row where none was measured. Keeps the order."""
    if rows.empty:
        return rows
    chosen = []
    for _, group in rows.groupby(by, sort=False):
        measured = group[(group["status"] == "ok") & group["tpot_ms"].notna()]
        chosen.append(group.index[0] if measured.empty else measured["tpot_ms"].idxmin())
    return rows.loc[chosen]


def at_protocol(study: Study) -> pd.DataFrame:
    """Rows of quality.csv at each model's corpus and protocol of summary.csv."""
    quality = study.table("quality")
    if quality.empty:
        return quality
    headline = {model: (study.headline(model)["corpus"], study.headline(model)["protocol"]) for model in study.models}
    same = [headline[row.model] == (row.corpus, row.protocol) for row in quality.itertuples()]
    return quality[same]


def rounding_floor(quality: pd.DataFrame, model: str, precision: str) -> float:
    """KL divergence, nats per token, that any change of a model in 16 bit causes: as far as fp32 lies from it.

    A change of one weight moves every rounding after it. NaN for fp32, or where fp32 was not compared.
    """
    if precision == "fp32" or quality.empty:
        return float("nan")
    same = (quality["model"] == model) & (quality["precision"] == "fp32") & (quality["status"] == "ok")
    return quality.loc[same, "kl_nats"].dropna().min()


def rounded_parts(study: Study) -> pd.DataFrame:
    """Measured rows of sensitivity.csv, with the 95 % interval of the divergence: ``kl_low_nats``, ``kl_high_nats``.

    The interval is Student's t with the standard error over the table's blocks ("8 documents" are 7 degrees of
    freedom). A divergence is never negative, so the low end is at least 0, unless rounding left the mean itself below;
    both are NaN where the text was too short for a standard error. ``floor_nats``: see ``rounding_floor``.
    """
    table = study.table("sensitivity")
    if table.empty:
        return table
    rows = table[(table["status"] == "ok") & table["kl_nats"].notna()]
    blocks = rows["blocks"].astype(str).str.extract(r"^(\d+)", expand=False).astype(float)
    half = rows["kl_se_nats"] * [critical_value(max(int(number) - 1, 1)) for number in blocks]
    low = (rows["kl_nats"] - half).clip(lower=rows["kl_nats"].clip(upper=0))
    floors = [rounding_floor(study.table("quality"), row.model, row.precision) for row in rows.itertuples()]
    return rows.assign(kl_low_nats=low, kl_high_nats=rows["kl_nats"] + half, floor_nats=floors)
