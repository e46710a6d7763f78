"""The answer: what to take, a table of metric × precision, and speed against memory in one picture."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from llmstudy.models import precisions
from llmstudy.report import markdown, style
from llmstudy.report.study import Study, fact, fastest, of_family, ordered
from llmstudy.runtimes import BASE
from llmstudy.tables.columns import CONFIGURATION, Column, number, percent

ABSENT = "–"
FAMILIES = {"int8": "8-bit"}  # families that the heading of a precision names
FIRST = ("tpot_ms", "memory_gib", "ppl_ratio")  # what the first screen shows of the table
METRICS = ("e2e_ms", "ttft_ms", *FIRST[:2], "ppl", FIRST[2])


def sentences(study: Study) -> list[str]:
    """Return what to take, model by model, and up to which batch size that holds."""
    rows = study.table("recommendation").set_index("model", drop=False)
    taken = [rows.loc[model] for model in study.models if model in rows.index]
    return [f"{study.label(row['model'])}: {row['sentence']}{over_batches(study, row)}" for row in taken]


def over_batches(study: Study, taken: pd.Series) -> str:
    """Return where a configuration overtakes the reference, or falls behind it, as the batch grows; or nothing."""
    crossings = study.table("crossover", taken["model"])
    same = (crossings[CONFIGURATION[1:]] == taken[CONFIGURATION[1:]]).all(axis=1) & (crossings["along"] == "batch")
    if not same.any():
        return ""
    row = crossings[same].iloc[0]
    return (
        f" Batch size against {row['reference']} (tokens/s of whole calls, prompt {row['prompt_tokens']:.0f}, both "
        f"under runtime `{row['runtime']}`): {row['text']}."
    )


def library_row(study: Study, model: str) -> pd.Series | None:
    """Return the configuration that people mean by running a model in 8 bit: the int8 precision of a library that the
    registry lists first, launched by the library. None if it was not compared."""
    rows = of_family(study.configurations(model), "int8", own=False)
    rows = ordered(rows[(rows["runtime"] == BASE) & rows["speedup"].notna()])
    return None if rows.empty else fastest(rows, ["precision"]).iloc[0]


def library_int8(study: Study, model: str) -> str | None:
    """Return what 8 bit costs and gains as a library has it, against the reference launched the same way."""
    row = library_row(study, model)
    if row is None:
        return None
    reference = study.headline(model)["reference"]
    text = (
        f"TPOT {number(row['tpot_ms'])} ms, {number(row['speedup'])} x the decode speed of {reference} launched alike"
    )
    if pd.notna(row["memory_ratio"]):
        text += f", at {number(row['memory_ratio'])} x its memory"
    if pd.notna(row["ppl_ratio"]):
        text += f", PPL loss {markdown.loss(row)}"
    name = f"`{row['precision']}` as the library has it (runtime `{BASE}`)"
    return f"{study.label(model)}: {name}: {text}. Verdict: {row['verdict']}."


def table(study: Study, only: tuple[str, ...] = METRICS) -> str:
    """Return metric × precision. A precision stands for its fastest configuration, which "measured as" names."""
    references = [study.headline(model)["reference"] for model in study.models]
    names = _columns(study, references[:1])
    header = ["metric"] + [_heading(name, name in references) for name in names]
    return markdown.grid(header, [line for model in study.models for line in _lines(study, model, names, only)])


def _columns(study: Study, first: list[str]) -> list[str]:
    """Return the precisions: the original, then 8 bit beginning with a library's, then others as configured."""
    summary = study.table("summary")
    eight_bit = [name for own in (False, True) for name in of_family(summary, "int8", own)["precision"]]
    return list(dict.fromkeys([*first, *eight_bit, *summary["precision"]]))


def _heading(precision: str, original: bool) -> str:
    kind = "original" if original else FAMILIES.get(fact(precision, "family"))
    return f"`{precision}`" + (f"<br>{kind}" if kind else "")


def _lines(study: Study, model: str, names: list[str], only: tuple[str, ...]) -> list[list[str]]:
    """Return a line for each metric; the first names the model, and says why a precision has no number."""
    chosen = fastest(study.configurations(model), ["precision"]).set_index("precision", drop=False)
    chosen = chosen.assign(measured_as=chosen["attention"] + ", " + chosen["runtime"])
    columns = [markdown.declared(name) for name in only if not (name.startswith("ppl") and study.is_synthetic(model))]
    columns += [Column("measured_as", "measured as", "text")] * (only == METRICS)
    lines = []
    for column in columns:
        cells = [_cell(chosen, name, column, why=not lines) for name in names]
        lines.append([f"**{study.label(model)}**<br>{column.title}" if not lines else column.title, *cells])
    return lines


def _cell(chosen: pd.DataFrame, precision: str, column: Column, why: bool) -> str:
    if precision not in chosen.index:
        return ABSENT
    row = chosen.loc[precision]
    if row["status"] == "ok":
        return markdown.cell(row, column) or markdown.NOT_APPLICABLE
    return markdown.failure(row) if why else f"`{row['status']}`"


def workloads(study: Study) -> str:
    """Return the workload of most models in words, and of each that has another."""
    words = {model: study.workload(model) for model in study.models}
    usual = max(words.values(), key=list(words.values()).count)
    others = [f"{study.label(model)}: {other}" for model, other in words.items() if other != usual]
    return usual + (f" ({'; '.join(others)})" if others else "")


def registered() -> str:
    """Return what the names of all precisions of the registry mean."""
    header = ["precision", "what it is", "bits per linear weight", "computes in", "devices", "kernels"]
    rows = [
        [f"`{one.name}`", one.title, f"{one.weight_bits:g}", f"`{one.compute_dtype}`", ", ".join(one.devices)]
        + ["this project's" if one.own else "a library's"]
        for one in map(precisions.get, precisions.names())
    ]
    return markdown.grid(header, rows, "l" * len(header))


def own_precisions() -> str:
    """Return the names of the precisions whose kernels are this project's."""
    return ", ".join(f"`{name}`" for name in precisions.names() if precisions.get(name).own)


def trade_off_rows(study: Study) -> pd.DataFrame:
    """Return per model, precision and runtime the fastest attention, where speed and memory were measured."""
    rows = study.measured("summary", "tpot_ms")
    return fastest(rows[rows["memory_gib"].notna()], ["model", "precision", "runtime"])


def draw_trade_off(rows: pd.DataFrame) -> Figure:
    """TPOT across, memory upwards, the change of perplexity in words: a panel for each model."""
    text = "○ runtime generate   □ runtime graph   filled: on the Pareto front (no other is at least as good in speed, "
    return style.by_model(rows, 3.0, _trade_off, text + "memory and perplexity)")


def _trade_off(axis, rows: pd.DataFrame) -> None:
    labels = []
    for precision, own in ordered(rows, "tpot_ms").groupby("precision", sort=False):
        hue = style.color(precision)
        axis.plot(own["tpot_ms"], own["memory_gib"], color=hue, linewidth=0.8)
        for row in own.itertuples():
            style.interval(axis, row.tpot_ms, row.tpot_low_ms, row.tpot_high_ms, row.memory_gib, hue, markersize=7,
                           marker=style.MARKERS.get(row.runtime, style.OTHER),
                           markerfacecolor=hue if row.pareto else "none")  # fmt: skip
        last = own.iloc[-1]
        compared = last["verdict"] != "reference" and pd.notna(last["ppl_ratio"])
        loss = f"  PPL {percent(last['ppl_ratio'])}" if compared else ""
        labels.append((last["tpot_ms"], last["memory_gib"], precision + loss, hue))
    axis.set_ylim(0, rows["memory_gib"].max() * 1.08)
    style.plain_log(axis)
    bars = " (95 % interval)" if rows["tpot_low_ms"].notna().any() else ""
    axis.set_xlabel(f"time per output token, ms{bars}")
    axis.set_ylabel("peak memory, GiB")
    axis.set_title(style.title(rows))
    style.label_right(axis, labels)
