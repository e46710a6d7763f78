"""What to take, and a table of metric × precision: in short on the first screen, in full in each study's section."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from llmstudy.report import markdown, selection
from llmstudy.report.study import SYNTHETIC, Study
from llmstudy.tables.phrases import number


def label(study: Study, model: str) -> str:
    """A model's name, marked where its weights are random."""
    return f"`{model}`" + (f" ({SYNTHETIC})" if study.is_synthetic(model) else "")


def sentences(study: Study) -> list[str]:
    """What to take, model by model, and up to which batch size that holds."""
    rows = study.table("recommendation").set_index("model", drop=False)
    taken = [rows.loc[model] for model in study.models if model in rows.index]
    return [f"{label(study, row['model'])}: {row['sentence']}{over_batches(study, row)}" for row in taken]


def over_batches(study: Study, taken: pd.Series) -> str:
    """Where the recommended configuration overtakes the reference, or falls behind it, as the batch grows."""
    crossings = study.of_model("crossover", taken["model"])
    if crossings.empty:
        return ""
    same = crossings["along"] == "batch"
    for column in ("precision", "attention", "runtime"):
        same &= crossings[column] == taken[column]
    if not same.any():
        return ""
    row = crossings[same].iloc[0]
    return (
        f" Batch size against {row['reference']} (tokens/s of whole calls, prompt {row['prompt_tokens']:.0f}, both "
        f"under runtime `{row['runtime']}`): {row['text']}."
    )


LIBRARY = "llm-int8"  # what people mean by running a model in 8 bit


def library_int8(study: Study, model: str) -> str | None:
    """What LLM.int8() does as the library has it, against the reference launched the same way; None if not measured."""
    rows = study.of_model("summary", model)
    rows = rows[(rows["precision"] == LIBRARY) & (rows["runtime"] == "generate") & rows["speedup"].notna()]
    if rows.empty:
        return None
    row = rows.loc[rows["tpot_ms"].idxmin()]
    reference = study.headline(model)["reference"]
    told = (
        f"TPOT {number(row['tpot_ms'])} ms, {number(row['speedup'])} x the decode speed of {reference} launched alike"
    )
    if pd.notna(row["memory_ratio"]):
        told += f", at {number(row['memory_ratio'])} x its memory"
    if not study.is_synthetic(model) and pd.notna(row["ppl_ratio"]):
        told += f", PPL loss {markdown.loss(row)}"
    return f"`{LIBRARY}` as the library has it (runtime `eager`): {told}. Verdict: {row['verdict']}."


def precision_order(study: Study) -> list[str]:
    """The originals first, then 8-bit beginning with LLM.int8(), then the others as configured."""
    references = [study.headline(model)["reference"] for model in study.models]
    seen = list(dict.fromkeys(study.table("summary")["precision"]))
    eight_bit = sorted((name for name in seen if "int8" in name), key=lambda name: not name.startswith("llm-int8"))
    return list(dict.fromkeys([*references[:1], *eight_bit, *seen]))


FIRST = ("TPOT, ms", "memory, GiB", "perplexity ÷ original's")  # what the first screen shows of the table


def table(study: Study, only: tuple[str, ...] = ()) -> str:
    """Metric × precision. A precision stands for its fastest configuration, which the row "measured as" names."""
    precisions = precision_order(study)
    header = ["metric", *(heading(name, study) for name in precisions)]
    rows = [row for model in study.models for row in model_rows(study, model, precisions, only)]
    return markdown.table(header, rows)


def heading(precision: str, study: Study) -> str:
    """A column's title: the original and the 8-bit precisions are called so."""
    originals = {study.headline(model)["reference"] for model in study.models}
    kind = "<br>original" if precision in originals else "<br>8-bit" if "int8" in precision else ""
    return f"`{precision}`{kind}"


def model_rows(study: Study, model: str, precisions: list[str], only: tuple[str, ...] = ()) -> list[list[str]]:
    """A line per metric, or per one of ``only``; the first names the model."""
    chosen = selection.fastest(study.of_model("summary", model), ["precision"]).set_index("precision", drop=False)
    measured = times(study)
    metrics: dict[str, Callable] = {
        "end-to-end latency, ms": lambda row: interval(measured, row, "e2e_ms"),
        "TTFT, ms": lambda row: interval(measured, row, "ttft_ms"),
        "TPOT, ms": lambda row: interval(measured, row, "tpot_ms"),
        "memory, GiB": lambda row: markdown.value(row["memory_gib"]),
    }
    if not study.is_synthetic(model):
        metrics["perplexity"] = lambda row: perplexity(row)
        metrics["perplexity ÷ original's"] = lambda row: perplexity_ratio(study, row)
    metrics["measured as"] = lambda row: f"{row['attention']}, {row['runtime']}"
    lines = []
    shown = {name: show for name, show in metrics.items() if name in only or not only}
    for place, (name, show) in enumerate(shown.items()):
        told = [cell(chosen, precision, show, why=place == 0) for precision in precisions]
        lines.append([f"**{label(study, model)}**<br>{name}" if place == 0 else name, *told])
    return lines


def cell(chosen: pd.DataFrame, precision: str, show: Callable, why: bool) -> str:
    """A metric of a precision, or its status, with the reason where ``why``."""
    if precision not in chosen.index:
        return "–"
    row = chosen.loc[precision]
    if row["status"] != "ok":
        return markdown.failure(row) if why else f"`{row['status']}`"
    return show(row)


def times(study: Study) -> pd.DataFrame:
    """Intervals of every configuration's times at its model's workload, by configuration."""
    measured = selection.over_repeats(study, selection.at_headline(study, "processes"))
    return measured.set_index(selection.CONFIGURATION) if len(measured) else measured


def interval(times: pd.DataFrame, row: pd.Series, quantity: str) -> str:
    """A quantity of a configuration with its interval over processes."""
    own = times.loc[tuple(row[column] for column in selection.CONFIGURATION)]
    return markdown.with_interval(own[quantity], own[f"{quantity}_low"], own[f"{quantity}_high"])


def perplexity(row: pd.Series) -> str:
    """Perplexity with its interval over documents."""
    return markdown.with_interval(row["ppl"], row["ppl_low"], row["ppl_high"], markdown.perplexity)


def perplexity_ratio(study: Study, row: pd.Series) -> str:
    """Perplexity over the original's, paired."""
    if row["precision"] == study.headline(row["model"])["reference"]:
        return "1"
    return markdown.with_interval(row["ppl_ratio"], row["ppl_ratio_low"], row["ppl_ratio_high"], markdown.ratio)


def workload(study: Study, model: str) -> str:
    """The workload of a model's rows in words."""
    headline = study.headline(model)
    return f"batch {headline['batch']}, prompt {headline['prompt_tokens']}, {headline['new_tokens']} new tokens"


def workloads(study: Study) -> str:
    """The workload of most models, and of each that has another."""
    told = {model: workload(study, model) for model in study.models}
    usual = max(told.values(), key=list(told.values()).count)
    others = [f"{label(study, model)}: {words}" for model, words in told.items() if words != usual]
    return usual + (f" ({'; '.join(others)})" if others else "")
