"""quality.csv and tasks.csv: what a precision loses, per token of a text and per answered document.

quality.csv has one row per precision, corpus and protocol. Perplexities come from one stored NLL per token in every
normalization; differences from the reference are paired token by token, with 95 % intervals by block bootstrap over
documents. ``ppl_ratio`` has an interval that is adjusted for all precisions compared under its protocol (Bonferroni;
Student's t from the standard error over documents). ``ppl_verdict`` is ``same`` where two one-sided tests put the ratio
within the margin (its 90 % interval lies inside), else ``higher`` or ``lower`` where the adjusted interval excludes 1,
else ``not enough text``; ``overflow`` where numbers are not finite. A precision that was measured on fewer tokens is
paired with the reference's first ones. ``top1_agreement`` is the share of positions where a most probable token is the
same; tokens that tie are all most probable. In the row of the reference, KL divergence and agreement are those of its
own weights computed with another attention implementation: the noise floor, below which a distance says nothing. All
else in that row is of the configured attention. ``kl_reason`` says why a measured row has no KL divergence,
``uncounted`` why it has no words or bytes, and no perplexity of them; ``bos`` is the token that begins every window,
and whether the tokenizer does the same by itself.

Windows (``w…``) and one pass over each text (``pass-…``) are the library's forward pass. Under ``decode-b…``, with its
batch size, each token went through the token step of the row's runtime; it is compared with the reference's token step
under the base runtime, and ``path_ratio`` is its perplexity to that of the pass of the same precision over the same
tokens, what the path costs beyond the precision.

tasks.csv has one row per model, precision and task of lm-eval, a group's documents taken together: ``accuracy`` with
its Wilson interval. Against the reference precision on the same documents: ``accuracy_change`` with its paired
interval; ``answers_changed``, among them ``correct_to_wrong`` and ``wrong_to_correct`` (a wrong answer can change into
another wrong one); ``mcnemar_p`` exact and unadjusted, ``mcnemar_p_holm`` over all precisions and tasks of the model,
and whether the two precisions are ``distinguishable`` by it at 5 %. The reference has no such cells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd

from llmstudy.llama import protocol_name
from llmstudy.stats.estimate import CONFIDENCE, critical_value, exponential, holm, percentile
from llmstudy.stats.quality import (
    agreement,
    bootstrap_mean,
    document_blocks,
    normalizations,
    paired_difference,
    perplexity,
)
from llmstudy.stats.text import paired_change, wilson
from llmstudy.tables import Sources
from llmstudy.tables.columns import AT_PROTOCOL, PROTOCOL, SHARED, Column, cells, columns, interval
from llmstudy.tables.probes import QUANTIZED
from llmstudy.tables.records import by_key, identity, read_arrays

COLUMNS = {
    "quality": [
        *columns("tokens:count words:count", SHARED + AT_PROTOCOL),
        Column("utf8_bytes", "bytes", "count"),
        *columns("nll:perplexity"),
        *interval("ppl", "ppl_low", "ppl_high", "token PPL", "perplexity"),
        *columns("word_ppl:perplexity byte_ppl:perplexity bits_per_byte:perplexity"),
        *interval("ppl_ratio", "ppl_ratio_low", "ppl_ratio_high", "PPL ratio", "ratio"),
        *columns("ppl_verdict:text kl_nats:nats kl_p99_nats:nats top1_agreement:percent delta_nll:signed"),
        Column("delta_nll_se", "SE of Δ NLL"),
        *columns("kl_low_nats:nats kl_high_nats:nats kl_median_nats:nats kl_p90_nats:nats kl_p999_nats:nats"),
        *columns("kl_max_nats:nats kl_tokens:count top1_low:percent top1_high:percent"),
        *interval("delta_p_mean", "delta_p_low", "delta_p_high", "Δp mean, points", "points"),
        Column("delta_p_rms", "Δp RMS", "percent"),
        *(Column(f"delta_p_{name}", f"Δp {name}, points", "points") for name in ("p1", "p5", "median", "p95", "p99")),
        *interval("path_ratio", "path_ratio_low", "path_ratio_high", "PPL ratio to one pass", "ratio"),
        *columns("blocks:text kl_reason:text bos:text uncounted:text"),
        QUANTIZED,
    ],
    "tasks": [
        *columns("task:text metric:text documents:count", SHARED),
        *interval("accuracy", "accuracy_low", "accuracy_high", "accuracy", "percent"),
        *interval("accuracy_change", "accuracy_change_low", "accuracy_change_high", "change, points", "points"),
        *columns("answers_changed:count correct_to_wrong:count wrong_to_correct:count"),
        Column("mcnemar_p", "p (McNemar)", "p"),
        Column("mcnemar_p_holm", "adjusted p", "p"),
        *columns("distinguishable:text"),
    ],
}
REFERENCE = "reference"
OVERFLOW = "overflow"  # the status of what is not finite
LOSSES = {
    "same": "shown to lie within the margin",
    "lower": "not a loss",
    "not enough text": "a loss beyond the margin is not shown",
}
OTHER_TEXT = "not the text that the reference scored: measure both again"
NOT_COMPARED = "not compared: the reference has no measurement of this text and protocol"
NO_REFERENCE = "the reference left no log-probabilities"
LATER_PROTOCOL = "compared under the first protocol alone"
OTHER_DOCUMENTS = "not the documents of the reference: measure both again"


def quality(sources: Sources) -> list[dict]:
    """Return a row for every corpus and protocol that a record was to measure, measured or not."""
    rows = []
    base = [record for record in sources.records if record["identity"]["runtime"] == sources.study["runtime"]]
    passes = {(record["identity"]["model"], record["identity"]["precision"]): record for record in base}
    for record, reference in sources.paired():
        entries, others = (by_key(side, "protocols", "corpus", "protocol") for side in (record, reference))
        settings = record["settings"]
        library = passes.get((record["identity"]["model"], record["identity"]["precision"]))
        protocols = protocols_of(settings, begins_with_bos(record))
        for corpus, (compared, name, whole) in product(settings["corpora"], protocols):
            entry, other = entries.get((corpus, name)), others.get((corpus, name))
            row = identity(record, entry) | {"corpus": corpus, "protocol": name, "bos": beginning(record)}
            row[QUANTIZED.name] = record["results"].get(QUANTIZED.name)
            if entry and entry["status"] == "ok":
                arrays = read_arrays(record["path"], f"{corpus}/{name}/")
                row |= perplexities(entry, arrays)
                if whole and library:
                    row |= path_of(arrays, read_arrays(library["path"], f"{corpus}/{whole}/"))
                if "kl" not in arrays:
                    row["kl_reason"] = entry.get("unpaired") or (NO_REFERENCE if compared else LATER_PROTOCOL)
                if math.isnan(row["ppl"]):
                    row |= {"status": OVERFLOW, "reason": f"{row['nll']:.0f} nats a token: no perplexity"}
                elif reference is record:
                    row |= divergences(arrays) | {"ppl_ratio": 1.0, "ppl_verdict": REFERENCE}
                elif not other or other["status"] != "ok":
                    overflows = other and other["status"] == OVERFLOW
                    reason = f"not compared: the reference is {other['reason']}" if overflows else NOT_COMPARED
                    row |= divergences(arrays) | {"reason": reason}
                else:
                    row |= paired(entry, arrays, other, read_arrays(reference["path"], f"{corpus}/{name}/"))
            if row["status"] == OVERFLOW:
                row["ppl_verdict"] = OVERFLOW
            rows.append(row)
    return judged(rows, sources.study["margin_percent"]["perplexity"])


def judged(rows: list[dict], margin_percent: float) -> list[dict]:
    """Return the rows with the adjusted ends of the perplexity ratio and its verdict, where they compare."""
    margin = math.log1p(margin_percent / 100)
    compared = [row for row in rows if row["status"] == "ok" and math.isfinite(row.get("delta_nll", math.nan))]
    text = itemgetter("model", *PROTOCOL)
    for row in compared:
        number = len({(one["precision"], one["runtime"]) for one in compared if text(one) == text(row)})
        change, se, degrees = row["delta_nll"], row["delta_nll_se"], int(row["blocks"].split()[0]) - 1
        half = critical_value(degrees, 1 - (1 - CONFIDENCE) / number) * se  # NaN of a single block
        inner = critical_value(degrees, 2 * CONFIDENCE - 1) * se
        row |= {"ppl_ratio_low": exponential(change - half), "ppl_ratio_high": exponential(change + half)}
        row["ppl_verdict"] = "higher" if change > half else "lower" if change < -half else "not enough text"
        if abs(change) + inner < margin:
            row["ppl_verdict"] = "same"
    return rows


def exceeds(rows: pd.DataFrame | Mapping, margin_percent: float) -> Any:
    """Return whether a loss is shown to exceed the margin, of a row or of each in a table."""
    return (rows["ppl_verdict"] == "higher") & (rows["ppl_ratio_low"] > 1 + margin_percent / 100)


def loss_words(row: Mapping, margin_percent: float) -> str:
    """Return what a verdict on perplexity says of a loss."""
    if row["ppl_verdict"] != "higher":
        return LOSSES[row["ppl_verdict"]]
    if exceeds(row, margin_percent):
        return "a loss shown to exceed the margin"
    small = row["ppl_ratio"] <= 1 + margin_percent / 100
    return "a small loss, below the margin by estimate" if small else "a loss, not shown to exceed the margin"


def protocols_of(settings: dict, bos: bool) -> list[tuple[bool, str, str]]:
    """Return each protocol of a record's settings: whether whole distributions are compared there, its name, and of
    decoded tokens the name of one pass over them."""
    windows = enumerate(settings["protocols"])
    found = [(number == 0, protocol_name(protocol, bos), "") for number, protocol in windows]
    decode = settings.get("decode", {"batches": []})  # no key of older records
    names = {batch: protocol_name(decode | {"batch": batch}, bos) for batch in decode["batches"]}
    whole = protocol_name(decode | {"batch": 0}, bos) if names else ""
    return found + [(batch > 0, name, whole * (batch > 0)) for batch, name in names.items()]


def path_of(arrays: dict, whole: dict) -> dict:
    """Return the ratio of the perplexity of decoded tokens to that of one pass by the same precision over them."""
    if "nll" not in whole or not np.array_equal(arrays["document"], whole["document"]):
        return {}
    change = paired_difference(whole["nll"], arrays["nll"], arrays["document"])
    return cells(change.exp(), "path_ratio", "path_ratio_low", "path_ratio_high")


def paired(entry: dict, arrays: dict, other: dict, reference: dict) -> dict:
    """Return the columns that compare with the reference's first tokens, or an error where its text is another."""
    beginning = {key: values[: len(arrays["nll"])] for key, values in reference.items()}
    same = np.array_equal(arrays["document"], beginning["document"])
    if entry["tokens"] == other["tokens"]:
        same = same and all(entry[key] == other[key] for key in ("words", "utf8_bytes"))
    if not same:
        return {"status": "error", "reason": OTHER_TEXT}
    return differences(arrays, beginning) | divergences(arrays)


def begins_with_bos(record: dict) -> bool:
    """Return whether the windows of a record begin with the beginning-of-text token: as measured, or as configured
    where nothing was."""
    return bool(record["results"]["bos"]["token"] if "bos" in record["results"] else record["settings"]["bos"])


def beginning(record: dict) -> str:
    """Return the token that begins the windows of a record, in words."""
    if (bos := record["results"].get("bos")) is None:
        return "yes" if begins_with_bos(record) else "none"
    habit = "as the tokenizer does" if bos["token"] == bos["habit"] else f"the tokenizer adds {bos['habit'] or 'none'}"
    return f"{bos['token'] or 'none'}, {habit}"


def perplexities(entry: dict, arrays: dict[str, np.ndarray]) -> dict:
    """Return one model's loss in every normalization, with the interval of its token perplexity; what is too large for
    a float is missing and says so."""
    nll = arrays["nll"].astype(np.float64)
    sizes = {"tokens": len(nll), "words": entry["words"], "utf8_bytes": entry["utf8_bytes"]}
    counts = {name: math.nan if size is None else size for name, size in sizes.items()}
    values = {"nll": nll.mean()} | normalizations(nll.sum(), **counts)
    values |= cells(perplexity(nll, arrays["document"]), "ppl")
    reasons = [entry.get("uncounted", ""), *(f"{name} beyond 1e308" for name, x in values.items() if np.isinf(x))]
    finite = {name: math.nan if np.isinf(x) else x for name, x in values.items()}
    return sizes | finite | {"uncounted": "; ".join(filter(None, reasons))}


def differences(arrays: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict:
    """Return the differences in the probability of the true tokens, paired token by token."""
    blocks = document_blocks(arrays["document"])
    change = paired_difference(reference["nll"], arrays["nll"], arrays["document"])
    delta_p = np.exp(-arrays["nll"].astype(np.float64)) - np.exp(-reference["nll"].astype(np.float64))
    return {
        "blocks": blocks.label,
        "delta_nll": change.value,
        "delta_nll_se": change.se,
        "ppl_ratio": exponential(change.value),
        **cells(bootstrap_mean(delta_p, blocks), "delta_p_mean", "delta_p_low", "delta_p_high"),
        "delta_p_rms": np.sqrt(np.mean(delta_p**2)),
        "delta_p_median": percentile(delta_p, 50),
        **{f"delta_p_p{q}": percentile(delta_p, q) for q in (1, 5, 95, 99)},
    }


def divergences(arrays: dict[str, np.ndarray]) -> dict:
    """Return the distance of the whole distributions, where they were compared: the first tokens of the text."""
    if "kl" not in arrays:
        return {}
    kl = arrays["kl"].astype(np.float64)
    document = arrays["document"][: len(kl)]
    quantiles = {"median": 50, "p90": 90, "p99": 99, "p999": 99.9}
    return {
        "kl_tokens": len(kl),
        **cells(bootstrap_mean(kl, document_blocks(document)), "kl_nats", "kl_low_nats", "kl_high_nats"),
        **{f"kl_{name}_nats": percentile(kl, q) for name, q in quantiles.items()},
        "kl_max_nats": kl.max(),
        **cells(agreement(arrays["top1"], document), "top1_agreement", "top1_low", "top1_high"),
    }


def tasks(sources: Sources) -> list[dict]:
    """Return a row for every task that a record was to measure, with p-values adjusted over each model."""
    rows = []
    for record, reference in sources.paired():
        entries = by_key(record, "tasks", "task")
        arrays = read_arrays(record["path"])
        others = read_arrays(reference["path"]) if reference and reference is not record else {}
        for task in record["settings"]["tasks"]:
            entry = entries.get((task,))
            row = identity(record, entry) | {"task": task}
            if entry and entry["status"] == "ok":
                correct = arrays[f"{task}/correct"]
                low, high = wilson(int(correct.sum()), len(correct))
                row |= {"metric": entry["metric"], "documents": len(correct), "accuracy": correct.mean()}
                row |= {"accuracy_low": low, "accuracy_high": high}
                if f"{task}/correct" in others:
                    row |= flips(others, arrays, task)
            rows.append(row)
    for model in {row["model"] for row in rows}:
        compared = [row for row in rows if row["model"] == model and "mcnemar_p" in row]
        for row, p in zip(compared, holm([row["mcnemar_p"] for row in compared])):
            row |= {"mcnemar_p_holm": p, "distinguishable": "yes" if p < 1 - CONFIDENCE else "no"}
    return rows


def flips(reference: dict[str, np.ndarray], arrays: dict[str, np.ndarray], task: str) -> dict:
    """Return the columns that compare with the reference, document by document."""
    if not np.array_equal(reference[f"{task}/document"], arrays[f"{task}/document"]):
        return {"status": "error", "reason": OTHER_DOCUMENTS}
    before, after = reference[f"{task}/correct"] == 1, arrays[f"{task}/correct"] == 1
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    difference = paired_change(int((before & after).sum()), lost, gained, int((~before & ~after).sum()))
    return cells(difference, "accuracy_change") | {
        "answers_changed": int((reference[f"{task}/answer"] != arrays[f"{task}/answer"]).sum()),
        "correct_to_wrong": lost,
        "wrong_to_correct": gained,
        "mcnemar_p": difference.p,
    }
