"""Speed: tables of times at the headline workload and at others, how far they can be trusted, and four figures."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llmstudy.models import precisions
from llmstudy.report import markdown, style
from llmstudy.report.provenance import shape_of
from llmstudy.report.study import Study, fastest, ordered
from llmstudy.runtimes import BASE
from llmstudy.stats.processes import same_against_same as repeatability
from llmstudy.tables import every
from llmstudy.tables.columns import CONFIGURATION, WORKLOAD, Column, number

LINES = {BASE: "-", "graph": "--"}  # by runtime
# Columns ``quantity`` and ``along`` of crossover.csv in words.
COMPARED = {
    "tokens_per_s": "tokens/s",
    "ttft_ms": "TTFT",
    "prefill_ms": "prefill, kernel alone",
    "decode_ms": "decode step, kernel alone",
}
ALONG = {"batch": "batch size", "prompt_tokens": "prompt tokens", "context": "context tokens"}


def table(study: Study, model: str) -> str | None:
    """Return every configuration of a model at its headline workload."""
    rows = ordered(study.configurations(model), "runtime", "attention")
    times = ["ttft_ms", "tpot_ms", "tokens_per_s", "mbu", "joules_per_token", "speedup", "verdict"]
    return markdown.table(rows, CONFIGURATION[1:], times)


def reasons(study: Study, model: str) -> str | None:
    """Return why each configuration has its verdict."""
    rows = ordered(study.table("summary", model), "runtime", "attention")
    return markdown.table(rows.drop(columns="status"), [*CONFIGURATION[1:], "verdict"], ["verdict_reason"])


def workloads(study: Study, model: str) -> str | None:
    """Return the other workloads, with the fastest attention of each precision and runtime."""
    rows = study.at_headline("speed", model, elsewhere=True)
    if not (rows["status"] == "ok").any():
        return None
    rows = fastest(rows, ["precision", "runtime", *WORKLOAD]).sort_values([*WORKLOAD, "tpot_ms"], kind="stable")
    sizes = [f"{row.batch:.0f} × ({row.prompt_tokens:.0f} + {row.new_tokens:.0f})" for row in rows.itertuples()]
    names = [Column("workload", "batch × (prompt + new)", "text"), *CONFIGURATION[1:]]
    return markdown.table(rows.assign(workload=sizes), names, ["ttft_ms", "tpot_ms", "tokens_per_s", "mbu"])


def same_against_same(study: Study) -> str | None:
    """Return how far apart two processes of the same configuration lie; None if nothing was repeated."""
    rows = study.measured("processes", "tpot_ms")
    repeats = rows.groupby([*CONFIGURATION, *WORKLOAD])["tpot_ms"]
    spread = repeatability(repeats.agg(list))
    if spread is None:
        return None
    model, precision, _, runtime, batch, prompt, new = (repeats.max() / repeats.min()).idxmax()
    usual = "" if pd.isna(spread.p95) else f", by at most {spread.p95:.1%} in 95 of 100 pairs"
    return (
        f"Measured over {spread.pairs} pair{'s' * (spread.pairs > 1)} of processes: the same configuration differed in "
        f"TPOT by {spread.median:.1%} in the median{usual} and by {spread.largest:.1%} at most ({study.label(model)}, "
        f"`{precision}`, runtime `{runtime}`, batch {batch}, {prompt} + {new} tokens). Smaller differences between "
        f"single processes are not to be believed ({study.file('processes')})."
    )


def flags(study: Study) -> str | None:
    """Return the conditions that were flagged while measuring, one of each sort, and how many processes have it."""
    rows = study.table("processes")
    single = rows["flags"].str.split("; ").explode()
    single = single[single != ""]
    texts = []
    for _, same in single.groupby(single.str.replace(r"\d+(\.\d+)?", "…", regex=True)):
        others = ", with other numbers in some" * (same.nunique() > 1)
        texts.append(f"{markdown.plain(same.iloc[0])} ({len(same)} of {len(rows)} rows{others})")
    return f"Conditions that were flagged while measuring: {'; '.join(texts)}." if texts else None


def crossover(study: Study) -> str | None:
    """Return where one configuration overtakes another, in words."""
    rows = []
    for (along, quantity), own in study.table("crossover").groupby(["along", "quantity"], sort=False):
        differing = "precision" if along == "batch" else "attention"
        for _, row in ordered(own).iterrows():
            candidate, reference = f"`{row[differing]}`", f"`{row['reference']}`"
            text = f"{ALONG[along]}: {markdown.plain(row['text'])}"
            at = _shared(row, along, differing)
            rows.append([f"`{row['model']}`", candidate, reference, COMPARED[quantity], at, text])
    return markdown.grid(["model", "candidate", "against", "in", "at", "cross-over"], rows, "l" * 6) if rows else None


def _shared(row: pd.Series, along: str, differing: str) -> str:
    """Return what both sides of a cross-over have in common. A kernel alone runs in no runtime."""
    names = ["precision"] if along == "context" else CONFIGURATION[1:]
    same = [str(row[column]) for column in names if column != differing]
    sizes = {"batch": "batch {:.0f}", "prompt_tokens": "prompt {:.0f}", "new_tokens": "{:.0f} new tokens"}
    same += [text.format(row[name]) for name, text in sizes.items() if name != along and pd.notna(row[name])]
    return ", ".join(same)


def failures(study: Study) -> str | None:
    """Return every configuration that failed anywhere, with the table and the full reason. Tables that are made of
    others alone would repeat it; of capacity.csv only a verification that failed counts."""
    rows = []
    for name, source in every().items():
        frame = study.table(name)
        if not source.kinds or frame.empty:
            continue
        if "prediction" in frame:
            frame = frame[frame["prediction"].notna()]
            ended = frame["prediction"].where(~frame["prediction"].isin(["held", "missed"]), "ok")
            frame = frame.assign(status=ended, reason=frame["prediction_reason"])
        failed = frame[frame["status"] != "ok"]
        for key, group in failed.groupby([*CONFIGURATION, "status", "reason"], sort=False, dropna=False):
            model, precision, attention, runtime, status, reason = key
            configuration = f"`{model}` `{precision}` {attention}, {runtime}"
            reason = markdown.plain(reason) if isinstance(reason, str) and reason else "no reason recorded"
            rows.append([name, configuration, str(len(group)), f"`{status}`", reason])
    return markdown.grid(["table", "configuration", "rows", "status", "reason"], rows, "llrll") if rows else None


def speed_rows(study: Study) -> pd.DataFrame:
    """Return a row for each configuration at its model's workload; failed ones keep their status."""
    rows = study.configurations()
    return rows if (rows["status"] == "ok").any() else rows.iloc[:0]


def draw_speed(rows: pd.DataFrame) -> Figure:
    """TTFT and TPOT: a line of panels for each model, a column for each attention and runtime."""
    kinds = list(rows[["runtime", "attention"]].drop_duplicates().itertuples(index=False, name=None))
    text = "● TPOT   ▷ TTFT   bars: 95 % interval over processes, where the study repeats any"
    settings = {"columns": len(kinds), "width": max(style.WIDTH, 1.6 + 2.2 * len(kinds))}
    settings |= {"sharex": "row", "sharey": "row"}
    draw = partial(_latencies, kinds=kinds)
    return style.stacked(rows, lambda own: 0.9 + 0.22 * own["precision"].nunique(), draw, text, **settings)


def _latencies(*line, kinds: list[tuple[str, str]]) -> None:
    *axes, rows = line
    names = precisions.in_order(rows["precision"])
    for axis, (runtime, attention) in zip(axes, kinds):
        own = rows[(rows["runtime"] == runtime) & (rows["attention"] == attention)]
        if own.empty:  # a model that the study runs in fewer ways than others
            axis.remove()
            continue
        _latency(axis, own.set_index("precision"), names)
        axis.set_title(f"{attention}, {runtime}")
        axis.set_xlabel("ms")
    style.plain_log(axes[0])
    axes[0].set_ylabel(style.title(rows).replace(" (", "\n("))


def _latency(axis: Axes, rows: pd.DataFrame, names: list[str]) -> None:
    style.name_rows(axis, names)
    for place, precision in enumerate(names):
        status = rows["status"].get(precision, "not in the study")
        if status != "ok":
            style.note(axis, place, status)
            continue
        row, hue = rows.loc[precision], style.color(precision)
        for quantity, marker, fill in (("tpot_ms", "o", hue), ("ttft_ms", ">", "none")):
            low, high = row[f"{quantity}_low"], row[f"{quantity}_high"]
            style.interval(axis, row[quantity], low, high, place, hue, marker=marker, markerfacecolor=fill)


def bandwidth_floor_rows(study: Study) -> pd.DataFrame:
    """Return per model, precision and runtime the fastest attention at the model's workload."""
    rows = study.at_headline("speed")
    rows = fastest(rows[rows["status"] == "ok"], ["model", "precision", "runtime"])
    return rows.dropna(subset="floor_ms")


def draw_bandwidth_floor(rows: pd.DataFrame) -> Figure:
    """TPOT above its floor: a panel for each model, a line for each precision and runtime."""
    text = "│ floor: bytes of weights and KV cache that a step must read ÷ copy bandwidth   ○ generate   □ graph"
    figure = style.stacked(rows, lambda own: 0.75 + 0.21 * len(own), _floor, text)
    figure.axes[-1].set_xlabel("time per output token, ms")
    return figure


def _floor(axis: Axes, rows: pd.DataFrame) -> None:
    rows = ordered(rows, "runtime")
    style.name_rows(axis, [f"{row.precision} {row.runtime}" for row in rows.itertuples()])
    for place, row in enumerate(rows.itertuples()):
        hue = style.color(row.precision)
        axis.plot([row.floor_ms] * 2, [place - 0.32, place + 0.32], color=hue, linewidth=2)
        axis.plot([row.floor_ms, row.tpot_ms], [place, place], color=hue, linewidth=0.7)
        marker = style.MARKERS.get(row.runtime, style.OTHER)
        style.interval(axis, row.tpot_ms, row.tpot_ms_low, row.tpot_ms_high, place, hue, marker=marker)
        text = f"{number(row.tpot_ms)} ms, {number(row.tpot_ms / row.floor_ms)} × floor"
        style.beside(axis, np.fmax(row.tpot_ms, row.tpot_ms_high), place, text)
    style.plain_log(axis)
    low, high = axis.get_xlim()
    axis.set_xlim(low, high * (high / low) ** 0.22)
    axis.set_title(style.title(rows))


def batch_rows(study: Study) -> pd.DataFrame:
    """Return per model the prompt length with most batch sizes; per precision, runtime and batch the fastest
    attention."""
    rows = study.table("speed")
    rows = fastest(rows[rows["status"] == "ok"], ["model", "precision", "runtime", *WORKLOAD])
    parts = [rows.iloc[:0]]
    for _, own in rows.groupby("model", sort=False):
        batches = own.groupby(["prompt_tokens", "new_tokens"])["batch"].nunique()
        if batches.max() > 1:
            prompt, new = batches.idxmax()
            parts.append(own[(own["prompt_tokens"] == prompt) & (own["new_tokens"] == new)])
    return pd.concat(parts[1:] or parts)


def draw_batch(rows: pd.DataFrame) -> Figure:
    """Throughput against batch size: a panel for each model."""
    text = "fastest attention of each precision   ○ and line: runtime generate   □ and dashes: runtime graph"
    return style.by_model(rows, 3.1, _batch, text)


def _batch(axis: Axes, rows: pd.DataFrame) -> None:
    labels = []
    for (precision, runtime), own in ordered(rows, "batch").groupby(["precision", "runtime"], sort=False):
        hue = style.color(precision)
        error = style.beyond(own, "tokens_per_s", "tokens_per_s_low", "tokens_per_s_high")
        axis.errorbar(own["batch"], own["tokens_per_s"], yerr=error, color=hue, linestyle=LINES.get(runtime, ":"),
                      marker=style.MARKERS.get(runtime, style.OTHER),
                      markerfacecolor="none" if runtime == BASE else hue)  # fmt: skip
        labels.append((own["batch"].iloc[-1], own["tokens_per_s"].iloc[-1], f"{precision} {runtime}", hue))
    style.plain_log(axis)
    style.plain_log(axis, "y")
    axis.set_xticks(sorted(set(rows["batch"])))
    axis.minorticks_off()
    axis.set_title(style.title(rows))
    axis.set_xlabel(f"batch (prompt {rows['prompt_tokens'].iloc[0]}, {rows['new_tokens'].iloc[0]} new tokens)")
    axis.set_ylabel("tokens/s")
    axis.grid(axis="both")
    style.label_right(axis, labels)


def roofline_rows(study: Study) -> pd.DataFrame:
    """Return two rows (``phase``) per model, precision and runtime at its fastest attention: operations per byte
    (``intensity``) and the rate (``tflops``), after Williams, Waterman, Patterson 2009.

    Bytes are weights and KV cache read once, the same for prefill; what spills to memory in between is not counted, so
    a point lies at its best possible intensity. A model whose shape is not known, or not that of a LLaMA, has no rows.
    """
    points = []
    for row in bandwidth_floor_rows(study).to_dict("records"):
        shape = shape_of(study, row["model"])
        if shape is None:
            continue
        prompt = row["prompt_tokens"]
        phases = {
            "decode": (1, prompt + row["new_tokens"] / 2, row["tpot_ms"]),
            "prefill": (prompt, (prompt + 1) / 2, row["ttft_ms"]),
        }
        for phase, (tokens, context, ms) in phases.items():
            operations = row["batch"] * shape.flops(tokens, context)
            reached = {"intensity": operations / row["step_bytes"], "tflops": operations / ms / 1e9}
            points.append(row | {"phase": phase} | reached)
    return pd.DataFrame(points)


def draw_roofline(rows: pd.DataFrame) -> Figure:
    """Achieved arithmetic against operations per byte: a panel for each model."""
    text = "○ decode   ▷ prefill   filled: runtime graph   line: copy bandwidth measured in the same jobs"
    return style.by_model(rows, 3.1, _roofline, text)


def _roofline(axis: Axes, rows: pd.DataFrame) -> None:
    rows = ordered(rows)
    for row in rows.itertuples():
        hue = style.color(row.precision)
        fill = "none" if row.runtime == BASE else hue
        marker = {"decode": "o", "prefill": ">"}[row.phase]
        axis.plot([row.intensity], [row.tflops], marker, color=hue, markerfacecolor=fill, markersize=6)
    bandwidth, highest = rows["bandwidth_gb_s"].median() / 1e3, rows["tflops"].max()
    ends = np.array([rows["intensity"].min() / 2, highest * 1.5 / bandwidth])
    axis.plot(ends, ends * bandwidth, color=style.INK, linewidth=1)
    axis.axhline(highest, color=style.INK, linewidth=0.8, linestyle=":")
    where = {"transform": axis.get_yaxis_transform(), "ha": "right", "va": "top", "fontsize": 8}
    axis.text(0.99, highest * 0.8, "highest achieved here", **where)
    style.plain_log(axis)
    style.plain_log(axis, "y")
    axis.grid(axis="both")
    axis.set_xlabel(f"operations per byte (bandwidth {bandwidth:.3g} TB/s)")
    axis.set_ylabel("TFLOP/s")
    axis.set_title(style.title(rows))
    prefill = rows[rows["phase"] == "prefill"].drop_duplicates("precision")
    hues = prefill["precision"].map(style.color)
    style.label_right(axis, list(zip(prefill["intensity"], prefill["tflops"], prefill["precision"], hues)))
