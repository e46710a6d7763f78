"""The answer: what to take for each use, what to know before believing it, and speed against memory in one picture."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llmstudy.models import precisions
from llmstudy.report import markdown, style
from llmstudy.report.markdown import NONE, listed, named, span, times
from llmstudy.report.study import Study, fact, fastest, ordered, sizes
from llmstudy.runtimes import BASE
from llmstudy.tables.advice import BATCH
from llmstudy.tables.columns import KEY, number, percent
from llmstudy.tables.quality import OVERFLOW, REFERENCE, loss_words
from llmstudy.tables.speed import name_of

MANY = 5  # names that a sentence has room for
WHOLE = 0.99  # share of the decoder's weights below which a precision is said to have replaced a part
# What a runtime adds to the way in which a precision is used.
RUNTIMES = {
    BASE: "",
    "graph": "in this project's runtime `graph`, not in a library yet",
    "compile": 'compiled with `model.generate(…, cache_implementation="static")`',
}


def advice(study: Study, model: str) -> str:
    """Return what to take of a model for each use: a table whose headings lead to the tables of their numbers."""
    rows = study.table("advice", model)
    linked = {"speed": "speed", "memory": "probes", "loss": "quality", "evidence": "advice"}
    paths = {title: f"[{title}]({study.folder.as_posix()}/{table}.csv)" for title, table in linked.items()}
    titles = {title: path if linked[title] in study.tables else title for title, path in paths.items()}
    lines = [_line(study, row, size) for (_, row), size in zip(rows.iterrows(), sizes(rows))]
    return markdown.grid(["use", "take", *titles.values(), "how"], lines, "l" * 7)


def _line(study: Study, row: pd.Series, size: str) -> list[str]:
    use = f"{row['use']}<br>{size}"
    if pd.isna(row["tpot_ms"]):
        return [use, f"{row['verdict']}: {markdown.plain(row['sentence'])}", *[NONE] * 5]
    name, others = markdown.configuration(row), list(map(markdown.coded, filter(None, row["instead"].split("; "))))
    taken = f"**{name}**" if row["verdict"] == "take" else f"{row['verdict']}: {name}"
    if row["verdict"] == "too noisy to say":
        taken = f"{row['verdict']}: {listed([name, *others], 'or')}"
    elif others:
        taken += f"<br>perhaps as fast: {listed(others, 'or')}"
    taken += f"<br>{markdown.plain(row['note'])}" * bool(row["note"])
    memory = "not measured here" if pd.isna(row["memory_gib"]) else f"{number(row['memory_gib'])} GiB"
    memory += "" if pd.isna(row["memory_ratio"]) else f", {number(row['memory_ratio'])} ×"
    evidence = f"{row['evidence']}, n = {row['processes']:.0f}"
    return [use, taken, _speed(study, row), memory, _loss(study, row), evidence, how(row["precision"], row["runtime"])]


def _speed(study: Study, row: pd.Series) -> str:
    """Return time or throughput, and the ratio to the best 16-bit configuration."""
    serving = row["use"] == BATCH
    text = f"{number(row['tokens_per_s'])} tokens/s" if serving else f"{number(row['tpot_ms'])} ms a token"
    if row["against"] == name_of(tuple(row[KEY])):
        return text if study.quantized_share(row) else f"{text}, the fastest without quantization"
    if pd.isna(row["speedup"]):
        return text
    alone = " (no interval)" * bool(pd.isna(row["speedup_low"]))
    return f"{text}, {times(row, 'speedup')} {markdown.coded(row['against'])}{alone}"


def _loss(study: Study, row: pd.Series) -> str:
    """Return what is known of the loss of quality of a row of advice.csv or summary.csv."""
    if row["weights"] == "synthetic":
        return "not known: random weights"
    if row["ppl_verdict"] == REFERENCE:
        published = study.quantized_share(row) > 0
        return "not known: published quantized" if published else "none: it is the original"
    if row["ppl_verdict"] == OVERFLOW:
        return "its numbers are not finite"
    if pd.isna(row["ppl_ratio"]):
        return "not known: not compared with the original"
    twice = ", quantized twice" * study.is_twice(row)
    share = study.quantized_share(row)
    part = f", {markdown.percent(share)} of the decoder quantized" * (0 < share < WHOLE)
    return f"{markdown.loss(row)}, {loss_words(row, study.margin_percent('perplexity'))}{twice}{part}"


def how(precision: str, runtime: str = BASE) -> str:
    """Return how a reader runs a precision in a runtime."""
    text = fact(precision, "how") or "as its library documents"
    if fact(precision, "own"):
        return text + "; nor is the runtime `graph`" * (runtime == "graph")
    return "; ".join(filter(None, [f"`{text}`", RUNTIMES.get(runtime, f"in the runtime `{runtime}`")]))


def unsettled(study: Study) -> str | None:
    """Return which verdicts on speed need more data, and how to get it; None where all are settled."""
    rows = study.measured("summary", "tpot_speedup")
    rows = rows[rows["tpot_verdict"] != "base"]
    wide = rows[rows["tpot_verdict"] == "not enough data"]
    if wide.empty:
        return None
    panels = int(rows["processes"].max()) + 2
    low, high = wide["tpot_speedup_low"].min(), wide["tpot_speedup_high"].max()
    between = "" if pd.isna(low) else f", between {number(low)} and {number(high)} times"
    return (
        f"Not enough data for {len(wide)} of {len(rows)} verdicts on the time per token{between}. Two panels more: set "
        f"`speed.panels` to `{{minimum: {panels}, maximum: {panels}}}` in the study's file, and run the command again."
    )


def caveats(study: Study) -> list[str]:
    """Return what to know before believing the answer."""
    rows, texts = study.measured("summary", "tpot_ms"), []
    if random := named(filter(study.is_synthetic, study.models)):
        texts.append(f"Random weights, with speed and memory but no quality: {random}.")
    if twice := named(filter(study.was_four_bit, study.models)):
        texts.append(f"Published in 4 bit, and dequantised to be the original here: {twice}. A 4-bit precision "
                     "quantizes it twice, and its loss is not that of the method.")  # fmt: skip
    if len(rows):
        alone = " What one process measured has no interval." * bool(rows["processes"].min() < 2)
        texts.append(f"n, the number of processes behind a ratio, is {span(rows['processes'])}.{alone}")
    texts.append("One device and one sitting: ratios carry over to the like, milliseconds do not.")
    own = [name for name in precisions.in_order(rows["precision"]) if fact(name, "own")]
    if own := named([*own, *["graph"] * ("graph" in set(rows["runtime"]))]):
        texts.append(f"This project's own, and tuned where it was measured: {own}. All else is as published.")
    rows = study.table("quality")
    for _, row in rows[rows["status"] == OVERFLOW].drop_duplicates(["model", "precision"]).iterrows():
        last = "Nothing can be compared with it: name another `reference`."
        is_reference = row["precision"] == study.headline(row["model"])["reference"]
        texts.append(f"`{row['precision']}` of `{row['model']}`: {markdown.plain(row['reason'])}. "
                     f"{last if is_reference else 'It is never recommended.'}")  # fmt: skip
    rows = study.table("summary")
    rows = rows[(rows["quantized_share"] > 0) & (rows["quantized_share"] < WHOLE)]
    for (model, share), own in rows.groupby(["model", "quantized_share"], sort=False):
        texts.append(f"Of the decoder of `{model}` {markdown.percent(share)} of the weights are quantized by "
                     f"{named(own['precision'])}; the rest, which no linear layer holds, stays as it was.")  # fmt: skip
    rows = study.table("summary")
    for status, own in rows[rows["status"] != "ok"].groupby("status", sort=False):
        names = list(dict.fromkeys(markdown.configuration(row) for _, row in own.iterrows()))
        more = [f"{len(names) - MANY} more"] * (len(names) > MANY)
        models = f" of {named(own['model'])}" * (len(study.models) > 1)
        words = markdown.FAILED.get(status, status).capitalize()
        texts.append(f"{words}: {listed([*names[:MANY], *more])}{models} ([why]({study.page}#failures)).")
    return [*texts, *filter(None, [unsettled(study)])]


def conclusions(study: Study) -> str | None:
    """Return what each precision is worth over all models of the study, each as its fastest configuration."""
    rows = fastest(study.measured("summary", "tpot_ms"), ["model", "precision"])
    lines = []
    for precision in precisions.in_order(rows["precision"]):
        own = rows[rows["precision"] == precision]
        words = own["tpot_verdict"][own["tpot_verdict"] != ""].value_counts()
        verdicts = listed([word if len(words) == 1 else f"{word} in {count}" for word, count in words.items()])
        loss = "; ".join(_loss(study, row) for _, row in own.iterrows() if pd.notna(row["ppl_ratio"]))
        speed, memory = (span(own[name].dropna(), " ×") for name in ("tpot_speedup", "memory_ratio"))
        lines.append([f"`{precision}`", f"{len(own)}", speed, verdicts or NONE, memory, loss or "not measured"])
    header = ["precision", "models", "speed", "verdict", "memory", "perplexity"]
    return markdown.grid(header, lines, "lrllll") if lines else None


def registered(study: Study) -> str:
    """Return what the names of the precisions of a study mean, and how each is used."""
    names = precisions.in_order([*study.table("summary")["precision"], *study.table("quality")["precision"]])
    known = [precisions.get(name) for name in names if fact(name, "name")]
    bits = {one.name: "its own" if one.compute_dtype == "auto" else f"{one.weight_bits:g}" for one in known}
    rows = [[f"`{one.name}`", one.title, bits[one.name], how(one.name)] for one in known]
    return markdown.grid(["precision", "what it is", "bits per linear weight", "how"], rows, "llrl")


def trade_off_rows(study: Study) -> pd.DataFrame:
    """Return per precision and runtime the fastest attention, of at most two models: of those whose steps some runtime
    captured, or of all where none did, the one with the fewest bytes a step and the one with the most."""
    rows = study.configurations()
    rows = fastest(rows[rows["memory_gib"].notna()], ["model", "precision", "runtime"])
    captured = rows["model"].isin(rows.loc[rows["runtime"] != BASE, "model"])
    rows = rows[captured] if captured.any() else rows
    size = rows.groupby("model")["step_bytes"].max()
    rows = rows[rows["model"].isin([size.idxmin(), size.idxmax()])] if len(size) else rows
    return rows.assign(is_twice=[study.is_twice(row) for _, row in rows.iterrows()])


def draw_trade_off(rows: pd.DataFrame) -> Figure:
    """TPOT across, memory upwards: a panel for each model, an arrow from the library's runtime to the captured step."""
    several, compiled = rows["runtime"].nunique() > 1, "   ◆ compiled step" * ("compile" in set(rows["runtime"]))
    text = f"○ the library's runtime{compiled}   ■ captured step   arrow: launch overhead removed" if several else ""
    return style.abreast([own for _, own in rows.groupby("model", sort=False)], 3.1, _trade_off, text)


def _trade_off(axis: Axes, rows: pd.DataFrame) -> None:
    labels = []
    for precision, own in ordered(rows, "tpot_ms").groupby("precision", sort=False):
        hue, best, last = style.color(precision), own.iloc[0], own.iloc[-1]
        for row in own.itertuples():
            library = row.runtime == BASE and len(own) > 1
            marker = style.MARKERS.get(row.runtime, style.OTHER)
            axis.plot([row.tpot_ms], [row.memory_gib], marker, color=style.QUIET if library else hue, markersize=6.5,
                      markerfacecolor="white" if row.runtime == BASE else hue)  # fmt: skip
        if len(own) > 1:
            ends = {"xy": best[["tpot_ms", "memory_gib"]], "xytext": last[["tpot_ms", "memory_gib"]]}
            arrow = {"arrowstyle": "->", "color": style.QUIET, "linewidth": 0.8, "shrinkA": 5, "shrinkB": 5}
            axis.annotate("", **ends, arrowprops=arrow)
        loss = f", PPL {percent(best['ppl_ratio'])}" if pd.notna(best["ppl_ratio"]) and best["ppl_ratio"] != 1 else ""
        text = " → ".join(number(row) for row in own["tpot_ms"][::-1])
        text = f"{precision}  {text} ms{loss}{', quantized twice' * bool(best['is_twice'])}"
        labels.append((last["tpot_ms"], last["memory_gib"], text, hue))
    style.plain_log(axis)
    low, high = axis.get_xlim()
    axis.set_xlim(low, high * (high / low) ** 0.1)
    axis.set_ylim(0, rows["memory_gib"].max() * 1.12)
    axis.set_xlabel("time per output token, ms")
    axis.set_ylabel("memory, GiB")
    axis.set_title(style.title(rows))
    style.label_right(axis, labels)
