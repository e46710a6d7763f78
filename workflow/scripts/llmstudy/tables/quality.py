"""quality.csv: one row per precision, corpus and protocol.

Perplexities come from one stored NLL per token in every normalization; differences from the reference are paired token
by token, with 95 % intervals by block bootstrap over documents. A precision that was measured on fewer tokens is paired
with the reference's first ones. The row of the reference has KL divergence and agreement alone, of a second run of it:
the noise floor. ``kl_reason`` says why a measured row has no KL divergence.
"""

from __future__ import annotations

import numpy as np

from llmstudy.llama import protocol_name
from llmstudy.stats.bootstrap import bootstrap_mean, document_blocks
from llmstudy.stats.estimate import percentile
from llmstudy.stats.quality import agreement, normalizations, paired_difference, perplexity, true_token_change
from llmstudy.tables import Sources
from llmstudy.tables.columns import AT_PROTOCOL, SHARED, Column, cells, columns, interval
from llmstudy.tables.records import identity, read_arrays

COLUMNS = {
    "quality": [
        *SHARED,
        *AT_PROTOCOL,
        *columns("tokens words", "count"),
        Column("utf8_bytes", "bytes", "count"),
        *columns("nll", "perplexity"),
        *interval("ppl", "ppl_low", "ppl_high", "token PPL", "perplexity"),
        *columns("word_ppl byte_ppl bits_per_byte", "perplexity"),
        *interval("ppl_ratio", "ppl_ratio_low", "ppl_ratio_high", "PPL ratio", "ratio"),
        Column("ppl_ratio_p", "p of the PPL ratio", "p"),
        *columns("kl_nats kl_p99_nats", "nats"),
        *columns("top1_agreement", "percent"),
        *columns("delta_nll", "signed"),
        Column("delta_nll_se", "SE of Δ NLL"),
        *columns("kl_low_nats kl_high_nats kl_median_nats kl_p90_nats kl_p999_nats kl_max_nats", "nats"),
        *columns("kl_tokens", "count"),
        *columns("top1_low top1_high top5_overlap", "percent"),
        *interval("delta_p_mean", "delta_p_low", "delta_p_high", "Δp mean, points", "points"),
        Column("delta_p_rms", "Δp RMS", "percent"),
        *(Column(f"delta_p_{name}", f"Δp {name}, points", "points") for name in ("p1", "p5", "median", "p95", "p99")),
        *columns("blocks kl_reason", "text"),
    ]
}
OTHER_TEXT = "not the text that the reference scored: measure both again"
NOT_COMPARED = "not compared: the reference has no measurement of this text and protocol"
NO_REFERENCE = "the reference left no log-probabilities"
LATER_PROTOCOL = "compared under the first protocol alone"


def quality(sources: Sources) -> list[dict]:
    """Return a row for every corpus and protocol that a record was to measure, measured or not."""
    return [row for record, reference in sources.paired() for row in rows_of(record, reference)]


def rows_of(record: dict, reference: dict | None) -> list[dict]:
    """Return the rows of one record; ``reference`` is the record that it is paired with, None if there is none."""
    entries, others = entries_of(record), entries_of(reference) if reference else {}
    rows = []
    for corpus in record["settings"]["corpora"]:
        for number, protocol in enumerate(record["settings"]["protocols"]):
            name = protocol_name(protocol, record["settings"]["bos"])
            entry, other = entries.get((corpus, name)), others.get((corpus, name))
            row = identity(record, entry) | {"corpus": corpus, "protocol": name}
            if entry and entry["status"] == "ok":
                arrays = read_arrays(record, f"{corpus}/{name}/")
                row |= perplexities(entry, arrays)
                if "kl" not in arrays:
                    row["kl_reason"] = LATER_PROTOCOL if number else NO_REFERENCE
                if reference is record:
                    row |= divergences(arrays)
                elif not other or other["status"] != "ok":
                    row |= divergences(arrays) | {"reason": NOT_COMPARED}
                else:
                    row |= paired(entry, arrays, other, read_arrays(reference, f"{corpus}/{name}/"))
            rows.append(row)
    return rows


def entries_of(record: dict) -> dict[tuple[str, str], dict]:
    """Return the results of a record by corpus and protocol."""
    return {(entry["corpus"], entry["protocol"]): entry for entry in record["results"].get("protocols", [])}


def paired(entry: dict, arrays: dict, other: dict, reference: dict) -> dict:
    """Return the columns that compare with the reference's first tokens, or an error where its text is another."""
    beginning = {key: values[: len(arrays["nll"])] for key, values in reference.items()}
    same = np.array_equal(arrays["document"], beginning["document"])
    if entry["tokens"] == other["tokens"]:
        same = same and all(entry[key] == other[key] for key in ("words", "utf8_bytes"))
    if not same:
        return {"status": "error", "reason": OTHER_TEXT}
    return differences(arrays, beginning) | divergences(arrays)


def perplexities(entry: dict, arrays: dict[str, np.ndarray]) -> dict:
    """Return one model's loss in every normalization, with the interval of its token perplexity."""
    nll = arrays["nll"].astype(np.float64)
    sizes = {"tokens": len(nll), "words": entry["words"], "utf8_bytes": entry["utf8_bytes"]}
    ppl = cells(perplexity(nll, arrays["document"]), "ppl", "ppl_low", "ppl_high")
    return sizes | {"nll": nll.mean()} | normalizations(nll.sum(), **sizes) | ppl


def differences(arrays: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict:
    """Return the differences in the probability of the true tokens, paired token by token."""
    blocks = document_blocks(arrays["document"])
    change = paired_difference(reference["nll"], arrays["nll"], arrays["document"])
    delta_p = true_token_change(reference["nll"], arrays["nll"])
    return {
        "blocks": blocks.label,
        "delta_nll": change.value,
        "delta_nll_se": change.se,
        "ppl_ratio_p": change.p,
        **cells(change.exp(), "ppl_ratio", "ppl_ratio_low", "ppl_ratio_high"),
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
    return {
        "kl_tokens": len(kl),
        **cells(bootstrap_mean(kl, document_blocks(document)), "kl_nats", "kl_low_nats", "kl_high_nats"),
        "kl_median_nats": percentile(kl, 50),
        "kl_p90_nats": percentile(kl, 90),
        "kl_p99_nats": percentile(kl, 99),
        "kl_p999_nats": percentile(kl, 99.9),
        "kl_max_nats": kl.max(),
        **cells(agreement(arrays["top1"], document), "top1_agreement", "top1_low", "top1_high"),
        "top5_overlap": np.mean(arrays["top5"], dtype=np.float64),
    }
