"""Quality: the distance from the original, outlier thresholds of LLM.int8(), a figure of each."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llmstudy.report import markdown, style
from llmstudy.report.markdown import named
from llmstudy.report.study import Claim, Study, fact, ordered, quantized, whole_text
from llmstudy.tables.columns import CONFIGURATION, PROTOCOL, number
from llmstudy.tables.quality import REFERENCE, loss_words

LEAST_NATS = 1e-4  # where the figure's axis begins: less is no difference that anybody meets
FAMILY_SIZE = 3  # thresholds of LLM.int8() that are worth a section


def distance(study: Study) -> Claim | None:
    """Claim which precision stays nearest to the original and which moves furthest."""
    rows = distance_rows(study)
    compared = rows[~rows["is_reference"]]
    if compared.empty:
        return None
    candidates = (quantized(compared) if len(quantized(compared)) else compared).sort_values("kl_nats")
    near, far = candidates["precision"].iloc[[0, -1]]
    texts = []
    for model, own in compared.groupby("model", sort=False):
        first = own.loc[own["kl_tokens"].idxmax()]
        texts.append(
            f"Scored were {number(first['kl_tokens'])} tokens of `{first['corpus']}` with `{model}`, "
            f"{first['blocks']}, under `{first['protocol']}` (beginning-of-text token: "
            f"{markdown.plain(first['bos'])})."
        )
        if own["is_twice"].any():
            texts.append("What is marked *quantized twice* says nothing of its method: the weights came in 4 bit.")
        summary = study.measured("summary", "ppl_ratio", model)
        summary = ordered(summary[summary["ppl_verdict"] != REFERENCE])
        words = [loss_words(row, study.margin_percent("perplexity")) for _, row in summary.iterrows()]
        for text, same in summary.assign(words=words).groupby("words", sort=False):
            texts.append(f"{text.capitalize()}: {named(same['precision'])}.")
    texts += filter(None, [steps(study)])
    texts.append(f"Perplexity in every normalization is in {study.file('quality')}.")
    heading = f"`{near}` stays nearest to the original" + f", `{far}` moves furthest" * (near != far)
    return Claim(heading, " ".join(texts), "distance")


def steps(study: Study) -> str | None:
    """Return how far perplexity through the token steps of the runtimes is from that of one pass over the same text."""
    rows = study.measured("quality", "path_ratio")
    if rows.empty:
        return None
    worst = rows.loc[(rows["path_ratio"] - 1).abs().idxmax()]
    return (
        f"Token by token, through the steps of {named(sorted(set(rows['runtime'])))}, perplexity differs from one pass "
        f"of the same precision by {markdown.change(worst['path_ratio'])} at most, of `{worst['precision']}` under "
        f"`{worst['runtime']}`."
    )


def distance_rows(study: Study) -> pd.DataFrame:
    """Return a row per model and precision with a divergence, and whether it is that of the reference itself; none of a
    model that was compared in no other."""
    rows = whole_text(study.at_headline("quality", PROTOCOL))
    rows = rows[(rows["status"] == "ok") & rows["kl_nats"].notna()]
    references = rows["model"].map({model: study.headline(model)["reference"] for model in study.models})
    twice = [study.is_twice(row) for _, row in rows.iterrows()]
    rows = rows.assign(is_reference=rows["precision"] == references, is_twice=twice)
    return rows[~rows.groupby("model")["is_reference"].transform("all").astype(bool)]


def draw_distance(rows: pd.DataFrame) -> Figure:
    """KL divergence from the reference: a line for each precision, a panel for each model."""
    text = "● mean with its 95 % interval"
    if rows.loc[rows["is_reference"], "kl_high_nats"].max() > LEAST_NATS:
        text += "   shaded: the reference computed in another equivalent way"
    figure = style.stacked(rows, lambda own: 0.75 + 0.26 * len(own), _distances, text)
    figure.axes[-1].set_xlabel("KL divergence from the original, nats per token")
    return figure


def _distances(axis: Axes, rows: pd.DataFrame) -> None:
    floor = rows.loc[rows["is_reference"], "kl_high_nats"].max()
    rows = rows[~rows["is_reference"]].sort_values("kl_nats")
    style.name_rows(axis, list(rows["precision"]))
    for place, row in enumerate(rows.itertuples()):
        hue = style.color(row.precision)
        mean, low, high = (np.fmax(x, LEAST_NATS) for x in (row.kl_nats, row.kl_low_nats, row.kl_high_nats))
        style.interval(axis, mean, low, high, place, hue, marker="<" if row.kl_nats < LEAST_NATS else "o",
                       markerfacecolor="white" if row.is_twice else hue)  # fmt: skip
        loss = "" if pd.isna(row.ppl_ratio) else f", perplexity {markdown.change(row.ppl_ratio)}"
        text = f"{number(row.kl_nats)} nats{loss}{', quantized twice' * bool(row.is_twice)}"
        style.beside(axis, np.fmax(mean, high), place, text)
    axis.set_xscale("log")
    right = axis.get_xlim()[1]
    axis.set_xlim(LEAST_NATS * 0.8, right * (right / LEAST_NATS) ** 0.5)
    if floor > LEAST_NATS:
        axis.axvspan(LEAST_NATS * 0.8, floor, color=style.QUIET, alpha=0.18, linewidth=0)
    axis.set_title(style.title(rows))


def thresholds_rows(study: Study) -> pd.DataFrame:
    """Return a row for each threshold of LLM.int8(): quality at the headline corpus and protocol, and TPOT at the
    headline workload where it was measured. Models with fewer than three thresholds have none."""
    rows = study.at_headline("quality", PROTOCOL)
    rows = rows.assign(threshold=rows["precision"].map(lambda name: fact(name, "threshold", np.nan)).astype(float))
    rows = rows[rows["threshold"].notna() & rows["ppl_ratio"].notna() & (rows["status"] == "ok")]
    speed = study.table("summary")[[*CONFIGURATION, "tpot_ms"]]
    rows = rows.merge(speed, how="left", on=CONFIGURATION).sort_values(["model", "threshold"])
    return rows[rows.groupby("model")["threshold"].transform("size") >= FAMILY_SIZE]


def draw_thresholds(rows: pd.DataFrame) -> Figure:
    """Loss over the threshold: a panel for each model."""
    text = "threshold 0: no decomposition, inf: outliers are searched for and none found"
    return style.abreast([own for _, own in rows.groupby("model", sort=False)], 2.6, _thresholds, text)


def _thresholds(axis: Axes, rows: pd.DataFrame) -> None:
    rows = rows.assign(place=range(len(rows)))
    for end in ("", "_low", "_high"):
        rows[f"loss{end}"] = 100 * (rows[f"ppl_ratio{end}"] - 1)
    names = [f"{row.threshold:g}\n{row.tokens:,.0f}" for row in rows.itertuples()]
    error = style.beyond(rows, "loss", "loss_low", "loss_high")
    axis.axhline(0, color=style.INK, linewidth=0.8)
    axis.errorbar(rows["place"], rows["loss"], yerr=error, color=style.color("llm-int8"), fmt="o")
    for row in rows.itertuples():
        style.beside(axis, row.place, row.loss, f"{number(row.loss)} %")
    axis.set_xlim(-0.4, len(rows) - 0.3)
    axis.set_xticks(rows["place"], names)
    axis.set(xlabel="outlier threshold, below it the tokens that the loss is over", ylabel="perplexity lost, %")
    axis.grid(axis="both")
    axis.set_title(style.title(rows))
