"""Tables of quality and samples."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from llmstudy.report import answer, markdown, selection
from llmstudy.report.figures.style import sort
from llmstudy.report.study import Study
from llmstudy.tables.generations import POSITIONS

SAMPLE_CHARACTERS = 400


def table(study: Study, model: str) -> str | None:
    """Every precision of a model at the first corpus and protocol; None if quality was not measured."""
    at_protocol = selection.at_protocol(study)
    own = at_protocol[at_protocol["model"] == model] if len(at_protocol) else at_protocol
    if own.empty:
        return None
    rows = []
    for _, row in sort(own).iterrows():
        again = row["precision"] == study.headline(model)["reference"]
        name = f"`{row['precision']}`" + (" again (noise floor)" if again else "")
        if row["status"] != "ok":
            rows.append([name, markdown.failure(row), *[f"`{row['status']}`"] * 5])
            continue
        rows.append(
            [
                name,
                answer.perplexity(row),
                markdown.with_interval(row["ppl_ratio"], row["ppl_ratio_low"], row["ppl_ratio_high"], markdown.ratio),
                markdown.with_interval(row["kl_nats"], row["kl_low_nats"], row["kl_high_nats"]),
                markdown.value(row["kl_p99_nats"]),
                markdown.with_interval(row["top1_agreement"], row["top1_low"], row["top1_high"], markdown.percent),
                markdown.percent(row["top5_overlap"]),
            ]
        )
    header = [
        "precision",
        "perplexity",
        "÷ reference's",
        "KL, nats",
        "KL p99, nats",
        "top-1 agreement",
        "top-5 overlap",
    ]
    return markdown.table(header, rows)


def distances(study: Study, model: str) -> str | None:
    """KL divergence, Δ NLL and Δp of every precision in full; None if nothing was compared."""
    at_protocol = selection.at_protocol(study)
    own = (
        at_protocol[(at_protocol["model"] == model) & (at_protocol["status"] == "ok")]
        if len(at_protocol)
        else at_protocol
    )
    own = own[own["precision"] != study.headline(model)["reference"]] if len(own) else own
    if own.empty or not own["delta_nll"].notna().any():
        return None
    percentiles = ["kl_median_nats", "kl_p90_nats", "kl_p99_nats", "kl_p999_nats", "kl_max_nats"]
    rows = []
    for _, row in sort(own).iterrows():
        delta = f"{row['delta_nll']:+.4f} ± {row['delta_nll_se']:.4f}" if pd.notna(row["delta_nll_se"]) else "n/a"
        mean = [row.get(f"delta_p_{end}", float("nan")) for end in ("mean", "low", "high")]  # older tables lack ends
        parts = [row[f"delta_p_{end}"] for end in ("rms", "p1", "p99")]
        rows.append(
            [
                f"`{row['precision']}`",
                delta,
                *(markdown.value(row[column]) for column in percentiles),
                markdown.with_interval(*mean, lambda x: f"{100 * x:+.2f}"),
                *(markdown.NOT_APPLICABLE if pd.isna(part) else f"{100 * part:+.1f}".lstrip("+") for part in parts),
            ]
        )
    header = ["precision", "Δ NLL ± SE", "KL median", "KL p90", "KL p99", "KL p99.9", "KL max"]
    return markdown.table([*header, "Δp mean, points", "Δp RMS", "Δp p1", "Δp p99"], rows)


def same_texts(study: Study, model: str) -> str:
    """Which precisions write the same texts as another one, though they are not the same; nothing where none do."""
    samples = study.of_model("generations", model)
    if samples.empty:
        return ""
    texts = {name: tuple(rows["text"]) for name, rows in samples[samples["status"] == "ok"].groupby("precision")}
    if texts.get("int8-w8a8", 1) != texts.get("int8-fused", 2):
        return ""
    return (
        "`int8-w8a8` writes the texts of `int8-fused`: up to 16 rows (a prompt of up to 16 tokens, then one row per "
        "new token) it multiplies by the same weight-only kernel. Its perplexity is measured over windows, with int8 "
        "activations."
    )


def protocols(study: Study, model: str) -> str | None:
    """Perplexity and its ratio under every corpus and protocol, a column each; None if there is but one."""
    own = as_configured(study.of_model("quality", model))
    if own.empty or len(columns := list(dict.fromkeys(zip(own["corpus"], own["protocol"])))) < 2:
        return None
    several = own["corpus"].nunique() > 1
    rows = []
    for precision, group in own.groupby("precision", sort=False):
        cells = {(row["corpus"], row["protocol"]): protocol_cell(row) for _, row in group.iterrows()}
        rows.append([f"`{precision}`", *(cells.get(column, markdown.NOT_APPLICABLE) for column in columns)])
    titles = [f"`{protocol}`" + (f", {corpus}" if several else "") for corpus, protocol in columns]
    return markdown.table(["precision", *titles], rows)


def protocol_cell(row: pd.Series) -> str:
    """Perplexity, and below it the ratio to the reference's with its interval."""
    if row["status"] != "ok":
        return markdown.failure(row)
    ppl = markdown.perplexity(row["ppl"])
    if pd.isna(row["ppl_ratio"]):
        return ppl
    ratio = markdown.with_interval(row["ppl_ratio"], row["ppl_ratio_low"], row["ppl_ratio_high"], markdown.ratio)
    return f"{ppl}<br>× {ratio.replace('<br>', ' ')}"


def conventions(study: Study, model: str) -> str | None:
    """Every corpus and protocol in every convention; None if quality was not measured."""
    own = as_configured(study.of_model("quality", model))
    if own.empty:
        return None
    rows = []
    for _, row in own.iterrows():
        names = [f"`{row['precision']}`", row["corpus"], f"`{row['protocol']}`"]
        if row["status"] != "ok":
            rows.append([*names, markdown.failure(row), *[f"`{row['status']}`"] * 5])
            continue
        numbers = ("nll", "ppl", "word_ppl", "byte_ppl", "bits_per_byte")
        rows.append([*names, markdown.value(row["tokens"]), *(markdown.perplexity(row[column]) for column in numbers)])
    header = ["precision", "corpus", "protocol", "tokens", "NLL", "token PPL", "word PPL", "byte PPL", "bits per byte"]
    return markdown.table(header, rows, "lllrrrrrr")


def as_configured(quality: pd.DataFrame) -> pd.DataFrame:
    """Rows by precision as everywhere, then by corpus and protocol in the order of the config, which the table has."""
    return sort(quality.assign(place=range(len(quality))), "place") if len(quality) else quality


def agreement(study: Study, model: str) -> str | None:
    """How long each precision's greedy texts stay those of the reference, and how much they repeat; None if unknown."""
    own = study.of_model("text", model)
    if own.empty:
        return None
    positions = [position for position in POSITIONS if own[f"agreement_{position}"].notna().any()]
    rows = []
    for _, row in sort(own).iterrows():
        name = f"`{row['precision']}`"
        if row["status"] != "ok":
            rows.append([name, markdown.failure(row), *[f"`{row['status']}`"] * (len(positions) + 4)])
            continue
        repeats = [f"{row['distinct_2_mean']:.3f}", f"{row['repetition_4_mean']:.3f}"]
        if pd.isna(row["exact_match"]):
            again = row["precision"] == study.headline(model)["reference"]
            missing = "–" if again else "no reference"
            rows.append([name + " (reference)" * again, *[missing] * (len(positions) + 3), *repeats])
            continue
        median = row["first_divergence_median_token"]
        rows.append(
            [
                name,
                f"{row['never_diverged']:.0f} of {row['prompts']:.0f}",
                "half or more never part" if pd.isna(median) else f"{median:g}",
                f"{row['identical_tokens_mean']:.1f} of {row['new_tokens']:.0f}",
                *(markdown.percent(row[f"agreement_{position}"]) for position in positions),
                *repeats,
            ]
        )
    header = [
        "precision",
        "texts identical",
        "parts at token, median",
        "identical tokens, mean",
        *(f"identical after {position}" for position in positions),
        "distinct-2",
        "repeated 4-grams",
    ]
    return markdown.table(header, rows)


def samples(study: Study) -> Iterator[tuple[str, str, str]]:
    """(model, prompt, table of continuations) for every prompt."""
    frame = study.table("generations")
    for (model, prompt), rows in frame.groupby(["model", "prompt"], sort=False) if len(frame) else []:
        reference = study.headline(model)["reference"]
        lines = [continuation(row, reference) for _, row in sort(rows).iterrows()]
        yield model, prompt, markdown.table(["precision", "continuation", "parts at token"], lines, "llr")


def continuation(row: pd.Series, reference: str) -> list[str]:
    """One precision's text and where it parts from the reference's."""
    name = f"`{row['precision']}`"
    if row["status"] != "ok":
        return [name, markdown.failure(row), f"`{row['status']}`"]
    text = markdown.plain(str(row["text"])[:SAMPLE_CHARACTERS].replace("\n", " ⏎ ")) or "(empty text)"
    if row["precision"] == reference:
        return [f"{name} (reference)", text, "–"]
    if not row["reference_text"]:
        return [name, text, "no reference"]
    parted = row["first_divergence_token"]
    return [name, text, "never" if pd.isna(parted) else f"{parted:.0f}"]


def tasks(study: Study, model: str) -> str | None:
    """Accuracy and flips of every precision, task by task; None if no task was measured."""
    own = study.of_model("tasks", model)
    if own.empty:
        return None
    rows = []
    by_task = pd.concat(sort(rows) for _, rows in own.groupby("task", sort=False, dropna=False))
    for _, row in by_task.iterrows():
        names = [f"`{row['task']}`", f"`{row['precision']}`"]
        if row["status"] != "ok":
            rows.append([*names, markdown.failure(row), *[f"`{row['status']}`"] * 6])
            continue
        change = [row[f"accuracy_change{end}"] for end in ("", "_low", "_high")]
        flips = [row[column] for column in ("answers_changed", "correct_to_wrong", "wrong_to_correct")]
        rows.append(
            [
                *names,
                markdown.value(row["documents"]),
                markdown.with_interval(row["accuracy"], row["accuracy_low"], row["accuracy_high"], markdown.percent),
                markdown.with_interval(*change, lambda share: f"{100 * share:+.1f}"),
                *(markdown.value(count) for count in flips),
                markdown.NOT_APPLICABLE if pd.isna(row["mcnemar_p_holm"]) else f"{row['mcnemar_p_holm']:.2g}",
            ]
        )
    header = ["task", "precision", "documents", "accuracy", "change, points", "answers changed", "correct → wrong"]
    return markdown.table([*header, "wrong → correct", "p"], rows, "llrrrrrrr")
