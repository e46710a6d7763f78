"""Speed: what a step's time consists of, what this study can tell apart, and two figures."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llmstudy.report import markdown, style
from llmstudy.report.markdown import listed, named, span, times
from llmstudy.report.study import Claim, Study, fastest, ordered, quantized
from llmstudy.runtimes import BASE
from llmstudy.tables.columns import WORKLOAD, number

NEAR = 1.25  # times its floor: a step that is said to come near it
OVERHEAD = 1.1  # times as fast, from which capturing a step is said to remove overhead


def again(study: Study) -> str | None:
    """Return the reference measured against itself, which must come out as no difference; None where it was not."""
    rows = study.table("speed", again=True)
    rows = rows[(rows["status"] == "ok") & rows["tpot_speedup"].notna()]
    if rows.empty:
        return None
    first, known = rows.iloc[0], rows[rows["tpot_speedup_low"].notna()]
    held = (known["tpot_speedup_low"] <= 1) & (known["tpot_speedup_high"] >= 1)
    text = (
        f"The reference against itself: called a second time in each round, `{first['precision']}` of "
        f"`{first['model']}` came out {times(first, 'tpot_speedup')} as fast (n = {first['processes']:.0f})."
    )
    return f"{text} The truth is 1, and {held.sum()} of {len(known)} such intervals hold it ({study.file('speed')})."


def flags(study: Study) -> str | None:
    """Return what disturbed the measurements, one of each sort, and how many rows have it."""
    rows = study.table("processes")
    single = rows["flags"].str.split("; ").explode()
    single = single[single != ""]
    kinds = single.groupby(single.str.replace(r"\d+(\.\d+)?", "…", regex=True))
    texts = [f"{markdown.plain(same.iloc[0])} ({len(same)} of {len(rows)} rows)" for _, same in kinds]
    return f"Disturbed while measuring: {'; '.join(texts)}." if texts else None


def launches(study: Study) -> Claim | None:
    """Claim what lies between a step's time and its bytes: launch overhead, where capturing the step removes it."""
    rows = floor_rows(study)
    if rows.empty:
        return None
    best = rows.loc[(rows["tpot_ms"] / rows["floor_ms"]).idxmin()]
    factor, texts, gains = best["tpot_ms"] / best["floor_ms"], [], []
    captured = study.measured("summary", "generate_speedup")
    captured = captured[(captured["runtime"] != BASE) & (captured["tpot_verdict"] == "base")]
    for _, row in captured.iterrows():
        gains.append(row["generate_speedup"])
        texts.append(
            f"A token of {study.label(row['model'])} takes {markdown.configuration(row)} {number(row['tpot_ms'])} ms, "
            f"{times(row, 'generate_speedup')} as fast as the reference under `{BASE}` (n = {row['processes']:.0f})."
        )
    heading = f"A step takes {number(factor)} times what its bytes need, or more"
    if gains and min(gains) > OVERHEAD:
        heading = "A step is launch overhead until it is captured"
    elif factor < NEAR:
        heading = "A step comes near what its bytes need"
    near = f"Nearest to its floor is {markdown.configuration(best)} of `{best['model']}`, at {number(factor)} times."
    return Claim(heading, " ".join(filter(None, [*texts, near, _busy(study, best["model"])])), "floor")


def _busy(study: Study, model: str) -> str | None:
    """Return how many launches a decode step of the reference takes under the library's runtime."""
    rows = study.measured("profile", "launches_per_token", model)
    rows = rows[(rows["runtime"] == BASE) & (rows["precision"] == study.headline(model)["reference"])]
    if rows.empty:
        return None
    count, busy = rows.iloc[0][["launches_per_token", "device_busy_share"]]
    return (
        f"Under `{BASE}` the host launches {number(count)} kernels a token, and the device works "
        f"{markdown.percent(busy)} of the time ({study.file('profile')})."
    )


def bytes_read(study: Study) -> Claim | None:
    """Claim whether fewer bytes make a step faster."""
    rows = fastest(quantized(study.measured("summary", "tpot_speedup")), ["model", "precision"])
    if rows.empty:
        return None
    faster, slower = (ordered(rows[rows["tpot_verdict"] == word]) for word in ("faster", "slower"))
    heading, texts = "Fewer bytes are not shown to be faster here", []
    if len(faster):
        name = faster.loc[faster["tpot_speedup"].idxmax(), "precision"]
        own = faster[faster["precision"] == name]
        heading = f"Fewer bytes are faster: `{name}` runs at {span(own['tpot_speedup'], ' ×')} the speed of 16 bit"
        texts = [text for _, row in own.iterrows() if (text := _first_token(study, row))]
    if len(slower):
        texts.append(f"Fewer bytes, yet slower than the fastest 16 bit for some model: {named(slower['precision'])}.")
    return Claim(heading, " ".join([*texts, f"Every ratio is in {study.file('summary')}."]), "trade_off")


def _first_token(study: Study, row: pd.Series) -> str | None:
    """Return what a faster step costs at the first token, and after how many tokens it is earned back."""
    base = study.measured("summary", "tpot_ms", row["model"]).query("tpot_verdict == 'base'")
    if base.empty or row["tpot_ms"] >= base.iloc[0]["tpot_ms"] or row["ttft_ms"] <= base.iloc[0]["ttft_ms"]:
        return None
    base = base.iloc[0]
    tokens = math.ceil((row["ttft_ms"] - base["ttft_ms"]) / (base["tpot_ms"] - row["tpot_ms"]))
    return (
        f"The first token of {study.label(row['model'])} takes {number(row['ttft_ms'])} ms instead of "
        f"{number(base['ttft_ms'])}; {tokens} further token{'s' * (tokens > 1)} earn it back."
    )


def batches(study: Study) -> Claim | None:
    """Claim up to which batch size the fastest quantized precision gains."""
    rows = batch_rows(study)
    if rows.empty:
        return None
    first = rows[rows["batch"] == rows["batch"].min()]
    name = first.loc[first["e2e_speedup"].idxmax(), "precision"]
    own = rows[rows["precision"] == name]
    gains = own.loc[own["e2e_verdict"] == "faster", "batch"]
    heading = f"`{name}` is not shown to gain at any batch size"
    if len(gains):
        end = "and not beyond" if gains.max() < own["batch"].max() else "the largest measured"
        heading = f"`{name}` gains up to batch {gains.max():.0f}, {end}"
    texts = []
    for (model, prompt, new), part in own.groupby(["model", "prompt_tokens", "new_tokens"], sort=False):
        values = [f"{number(row.e2e_speedup)} × at {row.batch:.0f}" for row in part.itertuples()]
        texts.append(f"Whole calls of {study.label(model)}, {prompt:.0f} + {new:.0f} tokens: {listed(values)}.")
    return Claim(heading, " ".join([*texts, f"Verdicts and intervals are in {study.file('speed')}."]), "batch")


def floor_rows(study: Study) -> pd.DataFrame:
    """Return per precision and runtime the fastest attention at the headline, of the model that was measured in most of
    them."""
    rows = study.configurations()
    rows = fastest(rows[rows["floor_ms"].notna()], ["model", "precision", "runtime"])
    kinds = rows.groupby("model", sort=False)["runtime"].agg(["nunique", "size"])
    return rows[rows["model"] == max(kinds.index, key=lambda name: tuple(kinds.loc[name]), default="")]


def draw_floor(rows: pd.DataFrame) -> Figure:
    """TPOT above its floor: a line for each precision and runtime of one model."""
    return style.stacked(rows, lambda own: 0.75 + 0.23 * len(own), _floor, "│ floor: bytes of a step ÷ bandwidth")


def _floor(axis: Axes, rows: pd.DataFrame) -> None:
    rows = ordered(rows, "runtime")
    style.name_rows(axis, [f"{row.precision} {row.runtime}" for row in rows.itertuples()])
    for place, row in enumerate(rows.itertuples()):
        hue = style.color(row.precision)
        axis.plot([row.floor_ms] * 2, [place - 0.32, place + 0.32], color=hue, linewidth=2)
        axis.plot([row.floor_ms, row.tpot_ms], [place, place], color=hue, linewidth=0.7)
        style.interval(axis, row.tpot_ms, row.tpot_ms_min, row.tpot_ms_max, place, hue,
                       marker=style.MARKERS.get(row.runtime, style.OTHER),
                       markerfacecolor="white" if row.runtime == BASE else hue)  # fmt: skip
        text = f"{number(row.tpot_ms)} ms, {number(row.tpot_ms / row.floor_ms)} × floor"
        style.beside(axis, np.fmax(row.tpot_ms, row.tpot_ms_max), place, text)
    style.plain_log(axis)
    low, high = axis.get_xlim()
    axis.set_xlim(low, high * (high / low) ** 0.22)
    axis.set_xlabel(f"time per output token, ms (bandwidth {number(rows['bandwidth_gb_s'].max())} GB/s)")
    axis.set_title(style.title(rows))


def batch_rows(study: Study) -> pd.DataFrame:
    """Return quantized configurations over the batch, of lengths that were measured at several batch sizes: those of
    the runtime with the least TPOT, the fastest attention of each precision, at most two models."""
    rows = quantized(study.measured("speed", "e2e_speedup"))
    rows = rows[rows.groupby(["model", "prompt_tokens", "new_tokens"])["batch"].transform("nunique") > 1]
    best = {model: own.loc[own["tpot_ms"].idxmin(), "runtime"] for model, own in rows.groupby("model", sort=False)}
    rows = rows[(rows["runtime"] == rows["model"].map(best)) & rows["model"].isin(list(best)[:2])]
    return fastest(rows, ["model", "precision", *WORKLOAD])


def draw_batch(rows: pd.DataFrame) -> Figure:
    """Throughput relative to the best 16-bit configuration, over the batch: a panel for each model and length."""
    parts = [own for _, own in rows.groupby(["model", "prompt_tokens", "new_tokens"], sort=False)]
    return style.abreast(parts, 3.0, _batch, "whole calls; above the line 1 is a gain over the fastest 16 bit")


def _batch(axis: Axes, rows: pd.DataFrame) -> None:
    axis.axhline(1, color=style.INK, linewidth=1)
    labels = []
    for precision, own in ordered(rows, "batch").groupby("precision", sort=False):
        hue, last = style.color(precision), own.iloc[-1]
        error = style.beyond(own, "e2e_speedup", "e2e_speedup_low", "e2e_speedup_high")
        axis.errorbar(own["batch"], own["e2e_speedup"], yerr=error, color=hue, marker="s", markersize=5, elinewidth=1.6)
        for row in own.iloc[:-1].itertuples():
            style.beside(axis, row.batch, row.e2e_speedup, number(row.e2e_speedup), xytext=(5, 8), color=hue, bbox=None)
        labels.append((last["batch"], last["e2e_speedup"], f"{precision}  {number(last['e2e_speedup'])}", hue))
    style.plain_log(axis)
    axis.set_xticks(sorted(set(rows["batch"])))
    axis.minorticks_off()
    axis.set_ylim(0, max(1.1, rows["e2e_speedup"].max()) * 1.12)
    prompt, new = rows.iloc[0][["prompt_tokens", "new_tokens"]]
    axis.set_title(style.title(rows, f"{prompt:.0f} + {new:.0f} tokens"))
    axis.set(xlabel="batch size", ylabel="× tokens/s of 16 bit")
    axis.grid(axis="both")
    style.label_right(axis, labels)
