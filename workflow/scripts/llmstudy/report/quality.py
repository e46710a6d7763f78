"""Quality: perplexity and the distance to the reference, generated texts, tasks, and four figures."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.transforms
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llmstudy.models import precisions
from llmstudy.report import markdown, style
from llmstudy.report.study import Study, fact, ordered, whole_text
from llmstudy.stats.text import agreement_curve
from llmstudy.tables.columns import CONFIGURATION, Column, number
from llmstudy.tables.generations import POSITIONS, compared, divergences

SAMPLE_CHARACTERS = 400
SMALLEST_NATS = 1e-9  # a smaller mean is rounding of the stored reference; a logarithmic axis needs an end
BESIDE_POINTS = 1.8  # between lines that coincide
FAMILY_SIZE = 3  # thresholds of LLM.int8() that are worth a section
NOTED = Column("noted", "precision", "markdown")  # see ``_noted``
CHANGES = ["delta_nll", "delta_nll_se", "kl_median_nats", "kl_p90_nats", "kl_p99_nats", "kl_p999_nats", "kl_max_nats"]
CHANGES += ["delta_p_mean", "delta_p_rms", "delta_p_p1", "delta_p_p99"]


def table(study: Study, model: str) -> str | None:
    """Return every precision of a model at the headline corpus and protocol."""
    rows = _noted(study, model, ordered(whole_text(study.at_protocol(model))), " again (noise floor)")
    distance = ["ppl", "ppl_ratio", "kl_nats", "kl_p99_nats", "top1_agreement", "top5_overlap"]
    return markdown.table(rows, [NOTED], distance)


def _noted(study: Study, model: str, rows: pd.DataFrame, note: str) -> pd.DataFrame:
    """Return rows with the precision as code in ``noted``, and a note at that of the reference."""
    reference = study.headline(model)["reference"]
    return rows.assign(noted=[f"`{name}`" + note * (name == reference) for name in rows["precision"]])


def distances(study: Study, model: str) -> str | None:
    """Return KL divergence, Δ NLL and Δp of every precision in full."""
    rows = whole_text(study.at_protocol(model))
    rows = rows[(rows["status"] == "ok") & (rows["precision"] != study.headline(model)["reference"])]
    return markdown.table(ordered(rows), ["precision"], CHANGES) if rows["delta_nll"].notna().any() else None


def protocols(study: Study, model: str) -> str | None:
    """Return perplexity and its ratio under every corpus and protocol, a column each; None if there is but one."""
    rows = ordered(whole_text(study.table("quality", model)))
    measured = list(dict.fromkeys(zip(rows["corpus"], rows["protocol"])))
    if len(measured) < 2:
        return None
    lines = []
    for precision, own in rows.groupby("precision", sort=False):
        cells = {(row["corpus"], row["protocol"]): _protocol(row) for _, row in own.iterrows()}
        lines.append([f"`{precision}`", *(cells.get(column, markdown.NOT_APPLICABLE) for column in measured)])
    several = rows["corpus"].nunique() > 1
    return markdown.grid(["precision", *(f"`{name}`" + f", {corpus}" * several for corpus, name in measured)], lines)


def _protocol(row: pd.Series) -> str:
    """Return perplexity, and below it the ratio to the reference's with its interval."""
    if row["status"] != "ok":
        return markdown.failure(row)
    ratio = markdown.cell(row, markdown.declared("ppl_ratio")).replace("<br>", " ")
    return markdown.perplexity(row["ppl"]) + (f"<br>× {ratio}" if ratio else "")


def normalizations(study: Study, model: str) -> str | None:
    """Return every corpus and protocol in every normalization."""
    names = ["precision", "corpus", Column("protocol", "protocol", "code")]
    rows = ordered(whole_text(study.table("quality", model)))
    return markdown.table(rows, names, ["tokens", "nll", "ppl", "word_ppl", "byte_ppl", "bits_per_byte"])


def agreement(study: Study, model: str) -> str | None:
    """Return how long each precision's greedy texts stay those of the reference, and how much they repeat."""
    rows = _noted(study, model, ordered(study.table("text", model)), " (reference)")
    after = [f"agreement_{position}" for position in POSITIONS]
    values = ["prompts", "never_diverged", "first_divergence_median_token", "identical_tokens_mean", *after]
    return markdown.table(rows, [NOTED], [*values, "distinct_2_mean", "repetition_4_mean"])


def samples(study: Study) -> Iterator[tuple[str, str, str]]:
    """Yield (model, prompt, table of continuations) for every prompt."""
    for (model, prompt), rows in study.table("generations").groupby(["model", "prompt"], sort=False):
        rows = _noted(study, model, ordered(rows), " (reference)")
        rows["text"] = [_shown(row) for _, row in rows.iterrows()]
        rows["differs"] = [_differs(row, study.headline(model)["reference"]) for _, row in rows.iterrows()]
        values = [Column("text", "continuation", "markdown"), Column("differs", "differs at token", "text")]
        yield model, prompt, markdown.table(rows, [NOTED], values)


def _shown(row: pd.Series) -> str:
    text = markdown.plain(row["text"][:SAMPLE_CHARACTERS].replace("\n", " ⏎ "))
    return "(empty text)" if not text and row["status"] == "ok" else text


def _differs(row: pd.Series, reference: str) -> str:
    """Return where a text differs from the reference's first; "" for one that failed."""
    if row["status"] != "ok":
        return ""
    if row["precision"] == reference:
        return "–"
    if not row["reference_text"]:
        return "no reference"
    token = row["first_divergence_token"]
    return "never" if pd.isna(token) else f"{token:.0f}"


def tasks(study: Study, model: str) -> str | None:
    """Return accuracy and flips of every precision, task by task."""
    rows = study.table("tasks", model)
    rows = pd.concat([rows.iloc[:0], *(ordered(own) for _, own in rows.groupby("task", sort=False, dropna=False))])
    flips = ["answers_changed", "correct_to_wrong", "wrong_to_correct", "mcnemar_p_holm"]
    names = [Column("task", "task", "code"), "precision"]
    return markdown.table(rows, names, ["documents", "accuracy", "accuracy_change", *flips])


def thresholds(study: Study, model: str) -> str | None:
    """Return loss and decode time of LLM.int8() over its threshold; None for fewer than three thresholds."""
    rows = thresholds_rows(study)
    values = ["tokens", "ppl_ratio", "kl_nats", "top1_agreement", "tpot_ms"]
    return markdown.table(rows[rows["model"] == model], ["precision", "threshold"], values)


def best_threshold(study: Study, model: str) -> str | None:
    """Return what the decomposition of LLM.int8() gains at its best threshold over the same text, and costs where that
    was timed."""
    rows = thresholds_rows(study)
    rows = rows[rows["model"] == model]
    if rows.empty:
        return None
    best = rows.loc[rows["ppl_ratio"].astype(float).idxmin()]
    plain = rows[rows["threshold"].isin([0, np.inf]) & (rows["tokens"] == best["tokens"])]
    if plain.empty or best["threshold"] in (0, np.inf):
        return None
    plain = plain.iloc[0]
    ratio = best["tpot_ms"] / plain["tpot_ms"]
    time = "" if pd.isna(ratio) else f", and a token takes {number(ratio)} times as long"
    return (
        f"Of `{model}` threshold {best['threshold']:g} loses {markdown.loss(best)} of perplexity where threshold "
        f"{plain['threshold']:g}, which leaves no column in 16 bit, loses {markdown.loss(plain)} (95 % intervals, "
        f"{number(best['tokens'])} tokens){time}."
    )


def perplexity_rows(study: Study) -> pd.DataFrame:
    """Return a row per model and precision, at the model's headline corpus and protocol."""
    rows = whole_text(study.at_protocol())
    return rows if (rows["status"] == "ok").any() else rows.iloc[:0]


def draw_perplexity(rows: pd.DataFrame) -> Figure:
    """Perplexity with its interval, and its ratio to the reference's: a line of panels for each model."""
    text = "95 % intervals over documents; the ratio is paired token by token, so its interval is far narrower"
    return style.stacked(rows, lambda own: 0.85 + 0.24 * len(own), _perplexities, text, columns=2, sharey="row")


def _perplexities(left: Axes, right: Axes, rows: pd.DataFrame) -> None:
    rows = ordered(rows)
    for axis, quantity in ((left, "ppl"), (right, "ppl_ratio")):
        style.name_rows(axis, list(rows["precision"]))
        for place, row in enumerate(rows.to_dict("records")):
            if row["status"] != "ok":
                style.note(axis, place, row["status"])
            elif pd.notna(row[quantity]):
                low, high = row[f"{quantity}_low"], row[f"{quantity}_high"]
                style.interval(axis, row[quantity], low, high, place, style.color(row["precision"]))
                if axis is right:
                    style.beside(axis, np.fmax(row[quantity], high), place, f"{row[quantity]:.4f}", xytext=(7, 0))
        axis.margins(x=0.12)
    left.set_title(f"{rows['model'].iloc[0]}, {rows['corpus'].iloc[0]}, {rows['protocol'].iloc[0]}")
    left.set_xlabel("perplexity per token")
    right.axvline(1, color=style.INK, linewidth=1)
    right.set_xlabel("perplexity ÷ reference's")


def divergence_rows(study: Study) -> pd.DataFrame:
    """Return a row per model and precision with a divergence, and whether it is that of the reference run again."""
    rows = whole_text(study.at_protocol())
    rows = rows[(rows["status"] == "ok") & rows["kl_nats"].notna()]
    references = rows["model"].map({model: study.headline(model)["reference"] for model in study.models})
    return rows.assign(is_reference=rows["precision"] == references)


def draw_divergence(rows: pd.DataFrame) -> Figure:
    """KL divergence from the reference between two known ones: the reference run again, and a coarse precision."""
    text = "● mean with its 95 % interval   │ 99th percentile over tokens   shaded: below the reference run again"
    figure = style.stacked(rows, lambda own: 0.75 + 0.26 * len(own), _divergences, text)
    figure.axes[-1].set_xlabel("KL divergence from the reference, nats per token")
    return figure


def _divergences(axis: Axes, rows: pd.DataFrame) -> None:
    rows = rows.sort_values("kl_nats")
    style.name_rows(axis, [row.precision + " again: noise floor" * row.is_reference for row in rows.itertuples()])
    for place, row in enumerate(rows.itertuples()):
        hue = style.color(row.precision)
        values = (row.kl_nats, row.kl_low_nats, row.kl_high_nats, row.kl_p99_nats)
        mean, low, high, tail = (max(x, SMALLEST_NATS) for x in values)
        axis.plot([mean, tail], [place, place], color=hue, linewidth=0.6)
        style.interval(axis, mean, low, high, place, hue)
        style.interval(axis, tail, tail, tail, place, hue, marker="|", markersize=9)
        style.beside(axis, tail, place, number(row.kl_nats))
    axis.set_xscale("log")
    left, right = axis.get_xlim()
    axis.set_xlim(left, right * (right / left) ** 0.08)
    floor = rows.loc[rows["is_reference"], "kl_high_nats"].max()
    if floor > left:
        axis.axvspan(left, floor, color=style.INK, alpha=0.18, linewidth=0)
    axis.set_title(rows["model"].iloc[0])


def agreement_rows(study: Study) -> pd.DataFrame:
    """Return a row per model, precision and prompt whose text was compared with the reference's."""
    texts = ((study.table("generations", name), study.headline(name)["reference"]) for name in study.models)
    return pd.concat(compared(*pair) for pair in texts)


def draw_agreement(rows: pd.DataFrame) -> Figure:
    """The share of prompts whose greedy text is still the reference's, token by token: a panel for each model."""
    text = "greedy text against the reference's   lines that coincide are drawn beside each other"
    return style.by_model(rows, 2.9, _agreement, text)


def _agreement(axis: Axes, rows: pd.DataFrame) -> None:
    tokens = int(rows["new_tokens"].min())
    names = precisions.in_order(rows["precision"])
    curves = {name: 100 * agreement_curve(divergences(rows[rows["precision"] == name]), tokens) for name in names}
    labels = []
    for precision, share in curves.items():
        hue = style.color(precision)
        same = [name for name, other in curves.items() if (other == share).all()]
        aside = (len(same) - 1) / 2 - same.index(precision)
        shift = matplotlib.transforms.ScaledTranslation(0, aside * BESIDE_POINTS / 72, axis.figure.dpi_scale_trans)
        axis.plot(range(tokens + 1), share, color=hue, drawstyle="steps-post", transform=axis.transData + shift)
        # A hair, so that labels of lines that end together keep the order of the lines.
        labels.append((tokens, share[-1] + aside / 1e3, f"{precision}  {share[-1]:.0f} %", hue))
    axis.set_xlim(0, tokens)
    axis.set_ylim(-6, 106)
    axis.grid(axis="both")
    axis.set_title(f"{rows['model'].iloc[0]}, {rows['prompt'].nunique()} prompts")
    axis.set_xlabel("generated tokens")
    axis.set_ylabel("prompts still identical, %")
    style.label_right(axis, labels)


def thresholds_rows(study: Study) -> pd.DataFrame:
    """Return a row for each threshold of LLM.int8(): quality at the headline corpus and protocol, and TPOT at the
    headline workload where it was measured. Models with fewer than three thresholds have none."""
    rows = study.at_protocol()
    rows = rows.assign(threshold=rows["precision"].map(lambda name: fact(name, "threshold", np.nan)).astype(float))
    rows = rows[rows["threshold"].notna() & rows["ppl_ratio"].notna() & (rows["status"] == "ok")]
    speed = study.at_headline("speed")[[*CONFIGURATION, "tpot_ms", "tpot_ms_low", "tpot_ms_high"]]
    rows = rows.merge(speed, how="left", on=CONFIGURATION).sort_values(["model", "threshold"])
    return rows[rows.groupby("model")["threshold"].transform("size") >= FAMILY_SIZE]


def draw_thresholds(rows: pd.DataFrame) -> Figure:
    """Loss over the threshold, and TPOT where as many thresholds were timed: a line of panels for each model."""
    text = "threshold 0: no decomposition, inf: outliers are searched for and none found   bars: 95 % intervals"
    timed = rows.groupby("model")["tpot_ms"].count().max() >= FAMILY_SIZE
    return style.stacked(rows, lambda own: 2.8, _thresholds, text, columns=2 if timed else 1)


def _thresholds(*line) -> None:
    *axes, rows = line
    rows = rows.assign(place=range(len(rows)))
    for end in ("", "_low", "_high"):
        rows[f"loss{end}"] = 100 * (rows[f"ppl_ratio{end}"] - 1)
    text = rows["tokens"].nunique() > 1  # paired over texts of different lengths
    names = [f"{row.threshold:g}" + (f"\n{row.tokens:,.0f}" if text else "") for row in rows.itertuples()]
    for axis, quantity, label in zip(axes, ("loss", "tpot_ms"), ("perplexity lost, %", "time per output token, ms")):
        own = rows[rows[quantity].notna()]
        error = style.beyond(own, quantity, f"{quantity}_low", f"{quantity}_high")
        axis.errorbar(own["place"], own[quantity], yerr=error, color=style.SERIES[1], fmt="o", elinewidth=0.8)
        searched = own[own["threshold"] > 0]
        axis.plot(searched["place"], searched[quantity], color=style.SERIES[1])
        axis.set_xticks(rows["place"], names)
        axis.set_xlabel("outlier threshold" + (", below it the tokens that loss is over" if text else ""))
        axis.set_ylabel(label)
        axis.grid(axis="both")
    axes[0].set_title(rows["model"].iloc[0])
