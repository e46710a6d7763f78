"""Tables of speed."""

from __future__ import annotations

import pandas as pd

from llmstudy.report import answer, markdown, selection
from llmstudy.report.figures.style import sort
from llmstudy.report.study import Study
from llmstudy.report.ties import speed as ties

WHOLE = "tokens/s, whole call"
HEADER = ["precision", "attention", "runtime", "TTFT, ms", "TPOT, ms", WHOLE, "MBU", "J/token", "speed-up", "verdict"]


def table(study: Study, model: str) -> str:
    """Every configuration of a model at its workload, by precision, failures with their reason."""
    summary = study.of_model("summary", model)
    measured = answer.times(study)
    rows = []
    for _, row in sort(summary, "runtime", "attention").iterrows():
        names = [f"`{row['precision']}`", row["attention"], row["runtime"]]
        if row["status"] != "ok":
            rows.append([*names, markdown.failure(row), *[f"`{row['status']}`"] * 5, row["verdict"]])
            continue
        rows.append(
            [
                *names,
                answer.interval(measured, row, "ttft_ms"),
                answer.interval(measured, row, "tpot_ms"),
                answer.interval(measured, row, "tokens_per_s"),
                markdown.percent(row["mbu"]),
                energy(measured, row),
                markdown.with_interval(row["speedup"], row["speedup_low"], row["speedup_high"]),
                row["verdict"],
            ]
        )
    return markdown.table(HEADER, rows, "lllrrrrrrl")


def energy(measured: pd.DataFrame, row: pd.Series) -> str:
    """Joules per token of a configuration, median over its processes; a dash where no counter told."""
    joules = measured.loc[tuple(row[column] for column in selection.CONFIGURATION), "joules_per_token"]
    return "–" if pd.isna(joules) else markdown.value(joules)


def without_energy(study: Study) -> str:
    """That no energy is told of a study, and why; nothing where some is."""
    latency = study.table("processes")
    if "joules_per_token" in latency and latency["joules_per_token"].notna().any():
        return ""
    return "No energy is told: no counter was readable on this machine, or the work drew no more than idling."


def reasons(study: Study, model: str) -> str:
    """Why each configuration has the verdict that it has."""
    rows = [
        [
            f"`{row['precision']}`",
            row["attention"],
            row["runtime"],
            row["verdict"],
            markdown.plain(row["verdict_reason"]) if isinstance(row["verdict_reason"], str) else "–",
        ]
        for _, row in sort(study.of_model("summary", model), "runtime", "attention").iterrows()
    ]
    return markdown.table(["precision", "attention", "runtime", "verdict", "reason"], rows, "lllll")


def workloads(study: Study, model: str) -> str | None:
    """TPOT and tokens/s at the other workloads, the fastest attention of each precision and runtime; None if none.

    What failed at a workload stands behind what ran.
    """
    latency = study.of_model("processes", model)
    others = latency[~selection.of_workload(latency, study.headline(model)) & latency["batch"].notna()]
    measured = selection.over_repeats(study, others)
    if measured.empty:
        return None
    keys = ["precision", "runtime", *selection.WORKLOAD]
    failed = others[others["status"] != "ok"].drop_duplicates(keys)
    every = pd.concat([measured.assign(status="ok"), failed], ignore_index=True)
    chosen = selection.fastest(every, keys).sort_values([*selection.WORKLOAD, "tpot_ms"], kind="stable")
    rows = []
    for _, row in chosen.iterrows():
        names = [f"{row['batch']:.0f} × ({row['prompt_tokens']:.0f} + {row['new_tokens']:.0f})"]
        names += [f"`{row['precision']}`", row["attention"], row["runtime"]]
        if row["status"] != "ok":
            rows.append([*names, markdown.failure(row), *[f"`{row['status']}`"] * 3])
            continue
        told = (
            markdown.with_interval(row[quantity], row[f"{quantity}_low"], row[f"{quantity}_high"])
            for quantity in ("ttft_ms", "tpot_ms", "tokens_per_s")
        )
        rows.append([*names, *told, markdown.percent(row["mbu"])])
    header = ["batch × (prompt + new)", "precision", "attention", "runtime", "TTFT, ms", "TPOT, ms", WHOLE, "MBU"]
    return markdown.table(header, rows, "llllrrrr")


def same_against_same(study: Study) -> str | None:
    """How far apart two processes of the same configuration lie in this study; None if nothing was repeated."""
    return ties.same_against_same(study.tables)


def flags(study: Study) -> list[str]:
    """What the conditions of a measurement made worth saying, with the number of rows; numbers by an example."""
    latency = study.table("processes")
    single = latency["flags"].str.split("; ").explode()
    single = single[single != ""]
    kinds = single.str.replace(r"\d+(\.\d+)?", "…", regex=True)
    told = []
    for _, same in single.groupby(kinds):
        others = ", with other numbers in some" if same.nunique() > 1 else ""
        told.append(f"{markdown.plain(same.iloc[0])} ({len(same)} of {len(latency)} rows{others})")
    return told


def failures(study: Study) -> str | None:
    """Every configuration that failed anywhere, with table and full reason; None if none did.

    Tables made of others would only say it twice; of capacity.csv only a verification that failed counts.
    """
    rows = []
    for name, frame in study.tables.items():
        if not {"status", "reason", *selection.CONFIGURATION} <= set(frame.columns) or name in ("summary", "text"):
            continue
        if "prediction" in frame:
            frame = verifications(frame)
        failed = frame[frame["status"] != "ok"]
        keys = [*selection.CONFIGURATION, "status", "reason"]
        for key, group in failed.groupby(keys, sort=False, dropna=False):
            model, precision, attention, runtime, status, reason = key
            told = markdown.plain(str(reason)) if isinstance(reason, str) and reason else "no reason recorded"
            configuration = f"`{model}` `{precision}` {attention}, {runtime}"
            rows.append([name, configuration, str(len(group)), f"`{status}`", told])
    return markdown.table(["table", "configuration", "rows", "status", "reason"], rows, "llrll") if rows else None


def verifications(capacity: pd.DataFrame) -> pd.DataFrame:
    """The verified predictions of capacity.csv, status and reason being those of the verification."""
    run = capacity[capacity["prediction"].notna()]
    ended = run["prediction"].where(~run["prediction"].isin(["held", "missed"]), "ok")
    return run.assign(status=ended, reason=run["prediction_reason"])
