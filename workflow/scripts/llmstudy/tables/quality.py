"""quality.csv: one row per precision, corpus and protocol.

Perplexities come from the same stored per-token NLL in every convention; differences from the reference are paired
token by token, with 95 % intervals by block bootstrap over documents. In the reference's own row only what two runs
of it were compared by is filled in (KL divergence and agreement, the noise floor): its NLL against itself says nothing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llmstudy.measure.stream import protocol_name
from llmstudy.stats.conventions import conventions
from llmstudy.stats.divergence import agreement, summarise_kl, summarise_true_token
from llmstudy.stats.paired import compare_nll, perplexity
from llmstudy.tables.columns import SHARED
from llmstudy.tables.common import identity, read_records, write_table

COLUMNS = [
    *SHARED,
    "corpus",
    "protocol",
    "tokens",
    "words",
    "utf8_bytes",
    "nll",
    "ppl",
    "ppl_low",
    "ppl_high",
    "word_ppl",
    "byte_ppl",
    "bits_per_byte",
    "ppl_ratio",
    "ppl_ratio_low",
    "ppl_ratio_high",
    "ppl_ratio_p",
    "kl_nats",
    "kl_p99_nats",
    "top1_agreement",
    "delta_nll",
    "delta_nll_se",
    "kl_low_nats",
    "kl_high_nats",
    "kl_median_nats",
    "kl_p90_nats",
    "kl_p999_nats",
    "kl_max_nats",
    "kl_tokens",
    "top1_low",
    "top1_high",
    "top5_overlap",
    "delta_p_mean",
    "delta_p_low",
    "delta_p_high",
    "delta_p_rms",
    "delta_p_p1",
    "delta_p_p5",
    "delta_p_median",
    "delta_p_p95",
    "delta_p_p99",
    "blocks",
]
TEXT = ("tokens", "words", "utf8_bytes")  # of an entry; equal for equal texts under one tokenizer
OTHER_TEXT = "not the text that the reference scored: measure both again"


def write(paths: list[str], reference: str, output: Path) -> None:
    """Aggregate quality records; ``reference`` is the precision that the others are paired with."""
    records = read_records(paths)
    references = {
        record["identity"]["model"]: record for record in records if record["identity"]["precision"] == reference
    }
    rows = [row for record in records for row in rows_of(record, references.get(record["identity"]["model"]))]
    write_table(rows, COLUMNS, output)


def rows_of(record: dict, reference: dict | None) -> list[dict]:
    """A row for every corpus and protocol that the record was asked for, measured or not."""
    entries, own = entries_of(record), Arrays(record)
    compared = reference is not None and reference["path"] != record["path"]
    others, other = (entries_of(reference), Arrays(reference)) if compared else ({}, Arrays())
    rows = []
    for corpus in record["settings"]["corpora"]:
        for protocol in record["settings"]["protocols"]:
            name = protocol_name(protocol, record["settings"]["bos"])
            entry = entries.get((corpus, name))
            row = identity(record, entry) | {"corpus": corpus, "protocol": name}
            if entry and entry["status"] == "ok":
                arrays, against = own.of(entry), other.of(entry)
                row |= perplexities(entry, arrays)
                if against and not same_text(entry, others[corpus, name], arrays, against):
                    row |= {"status": "error", "reason": OTHER_TEXT}
                else:
                    row |= distances(arrays, against)
            rows.append(row)
    return rows


def entries_of(record: dict) -> dict[tuple[str, str], dict]:
    """What a record has of each corpus and protocol."""
    return {(entry["corpus"], entry["protocol"]): entry for entry in record["results"].get("protocols", [])}


def same_text(entry: dict, other: dict, arrays: dict[str, np.ndarray], against: dict[str, np.ndarray]) -> bool:
    """Whether two records scored the same tokens of the same documents."""
    return [entry[key] for key in TEXT] == [other[key] for key in TEXT] and np.array_equal(
        arrays["document"], against["document"]
    )


class Arrays:
    """The per-token arrays beside a quality record; none without a record."""

    def __init__(self, record: dict | None = None):
        path = record["path"].with_suffix(".npz") if record else None
        self.stored = np.load(path) if path and path.exists() and path.stat().st_size else {}

    def of(self, entry: dict) -> dict[str, np.ndarray]:
        """Arrays of one corpus and protocol by quantity; empty if there are none."""
        prefix = f"{entry['corpus']}/{entry['protocol']}/"
        return {key.removeprefix(prefix): self.stored[key] for key in self.stored if key.startswith(prefix)}


def perplexities(entry: dict, arrays: dict[str, np.ndarray]) -> dict:
    """One model's loss in every convention, with the interval of its token perplexity."""
    nll = arrays["nll"].astype(np.float64)
    every = conventions(nll.sum(), len(nll), entry["words"], entry["utf8_bytes"])
    ppl = perplexity(nll, arrays["document"])
    return {
        "tokens": len(nll),
        "words": entry["words"],
        "utf8_bytes": entry["utf8_bytes"],
        "nll": nll.mean(),
        "ppl": ppl.value,
        "ppl_low": ppl.low,
        "ppl_high": ppl.high,
        "word_ppl": every.word_ppl,
        "byte_ppl": every.byte_ppl,
        "bits_per_byte": every.bits_per_byte,
    }


def distances(arrays: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict:
    """How far from the reference, token by token."""
    columns: dict = {}
    if "nll" in reference:
        paired = compare_nll(reference["nll"], arrays["nll"], arrays["document"])
        delta = summarise_true_token(reference["nll"], arrays["nll"], arrays["document"])
        columns |= {
            "delta_nll": paired.delta_nll.value,
            "delta_nll_se": paired.delta_nll.se,
            "ppl_ratio": paired.ppl_ratio.value,
            "ppl_ratio_low": paired.ppl_ratio.low,
            "ppl_ratio_high": paired.ppl_ratio.high,
            "ppl_ratio_p": paired.ppl_ratio.p,
            "blocks": paired.blocks,
            "delta_p_mean": delta.mean.value,
            "delta_p_low": delta.mean.low,
            "delta_p_high": delta.mean.high,
            "delta_p_rms": delta.rms,
            "delta_p_p1": delta.p1,
            "delta_p_p5": delta.p5,
            "delta_p_median": delta.median,
            "delta_p_p95": delta.p95,
            "delta_p_p99": delta.p99,
        }
    if "kl" in arrays:
        document = arrays["document"][: len(arrays["kl"])]
        kl = summarise_kl(arrays["kl"], document)
        top1 = agreement(arrays["top1"], document)
        columns |= {
            "kl_tokens": len(arrays["kl"]),
            "kl_nats": kl.mean.value,
            "kl_low_nats": kl.mean.low,
            "kl_high_nats": kl.mean.high,
            "kl_median_nats": kl.median,
            "kl_p90_nats": kl.p90,
            "kl_p99_nats": kl.p99,
            "kl_p999_nats": kl.p99_9,
            "kl_max_nats": kl.maximum,
            "top1_agreement": top1.value,
            "top1_low": top1.low,
            "top1_high": top1.high,
            "top5_overlap": float(np.mean(arrays["top5"], dtype=np.float64)),
        }
    return columns
