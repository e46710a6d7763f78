"""The first screen: one sentence per model, and one table of metric × precision."""

from __future__ import annotations

import pandas as pd

from llmstudy.rendering import markdown
from llmstudy.studies import Study
from llmstudy.statistics.latency import process_interval

SYNTHETIC = "synthetic weights"


def label(study: Study, model: str) -> str:
    """A model's name, marked where its weights are random."""
    return f"`{model}`" + (f" ({SYNTHETIC})" if study.is_synthetic(model) else "")


def sentences(study: Study) -> list[str]:
    """What to take, model by model."""
    rows = study.table("recommendation").set_index("model")["sentence"]
    return [f"**{label(study, model)}**: {rows[model]}" for model in study.models() if model in rows]


def precision_order(study: Study) -> list[str]:
    """The originals first, then 8-bit beginning with LLM.int8(), then the others as configured."""
    references = [study.reference(model) for model in study.models()]
    seen = list(dict.fromkeys(study.tables["summary"]["precision"]))
    eight_bit = sorted((name for name in seen if "int8" in name), key=lambda name: not name.startswith("llm-int8"))
    return list(dict.fromkeys([*references[:1], *eight_bit, *seen]))


def fastest(rows: pd.DataFrame) -> pd.Series:
    """The measured configuration with the least TPOT; where none was measured, the first row."""
    measured = rows[(rows["status"] == "ok") & rows["tpot_ms"].notna()]
    return rows.iloc[0] if measured.empty else measured.loc[measured["tpot_ms"].idxmin()]


def table(study: Study) -> str:
    """Metric × precision. A precision stands for its fastest configuration, which the row "measured as" names."""
    precisions = precision_order(study)
    header = ["metric", *(heading(name, study) for name in precisions)]
    return markdown.table(header, [row for model in study.models() for row in model_rows(study, model, precisions)])


def heading(precision: str, study: Study) -> str:
    """A column's title: the original and the 8-bit precisions are called so."""
    originals = {study.reference(model) for model in study.models()}
    kind = "<br>original" if precision in originals else "<br>8-bit" if "int8" in precision else ""
    return f"`{precision}`{kind}"


def model_rows(study: Study, model: str, precisions: list[str]) -> list[list[str]]:
    """The rows of one model."""
    summary = study.tables["summary"]
    own = summary[summary["model"] == model]
    chosen = {name: fastest(rows) for name, rows in own.groupby("precision", sort=False)}
    metrics = {
        "measured as": lambda row: f"{row['attention']}, {row['runtime']}",
        "latency, ms": lambda row: end_to_end(study, row),
        "TPOT, ms": lambda row: markdown.with_interval(row["tpot_ms"], row["tpot_low_ms"], row["tpot_high_ms"]),
        "memory, GiB": lambda row: markdown.value(row["memory_gib"]),
    }
    if not study.is_synthetic(model):
        metrics["perplexity"] = lambda row: markdown.with_interval(row["ppl"], row["ppl_low"], row["ppl_high"])
        metrics["perplexity ÷ original"] = lambda row: perplexity_ratio(study, row)
    return [
        [f"{label(study, model)}: {name}", *(cell(chosen.get(precision), show) for precision in precisions)]
        for name, show in metrics.items()
    ]


def cell(row: pd.Series | None, show) -> str:
    """A metric of a configuration, or why there is none."""
    if row is None:
        return "not in the study"
    if row["status"] != "ok":
        return markdown.failure(row)
    return show(row)


def end_to_end(study: Study, row: pd.Series) -> str:
    """Time of the whole call with its interval over processes."""
    latency, focus = study.tables["latency"], study.provenance["focus"][row["model"]]
    same = latency["status"] == "ok"
    for column in ("model", "precision", "attention", "runtime"):
        same &= latency[column] == row[column]
    for column in ("batch", "prompt_tokens", "new_tokens"):
        same &= latency[column] == focus[column]
    found = process_interval(latency.loc[same, "e2e_ms"])
    return markdown.with_interval(found.value, found.low, found.high)


def perplexity_ratio(study: Study, row: pd.Series) -> str:
    """Perplexity over the original's, paired."""
    if row["precision"] == study.reference(row["model"]):
        return "1 (the original)"
    return markdown.with_interval(row["ppl_ratio"], row["ppl_ratio_low"], row["ppl_ratio_high"], markdown.ratio)
