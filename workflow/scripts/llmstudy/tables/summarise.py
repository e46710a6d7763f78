"""`summary.csv`: one row per configuration, at one workload and one quality protocol."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import pandas as pd

from llmstudy.stats.capacity import peak_gib
from llmstudy.stats.estimate import without_interval
from llmstudy.stats.processes import Noise, process_interval, ratio
from llmstudy.tables.columns import CONFIGURATION, IDENTITY, WORKLOAD, nearest_workload, text
from llmstudy.tables.noise import SharedNoise

QUALITY = [
    "ppl",
    "ppl_low",
    "ppl_high",
    "ppl_ratio",
    "ppl_ratio_low",
    "ppl_ratio_high",
    "ppl_ratio_p",
    "kl_nats",
    "kl_low_nats",
    "kl_high_nats",
    "top1_agreement",
    "top1_low",
    "top1_high",
]


@dataclass(frozen=True)
class Headline:
    """What the one row per configuration speaks of: a workload, a corpus and a quality protocol."""

    batch: int
    prompt_tokens: int
    new_tokens: int
    corpus: str
    protocol: str


def summarise(
    latency: pd.DataFrame,
    memory: pd.DataFrame,
    quality: pd.DataFrame,
    reference: Mapping[str, str],
    headline: Headline,
    noise: SharedNoise,
) -> pd.DataFrame:
    """Join the tables of one study to one row per model x precision x attention x runtime.

    `reference`: the reference precision of each model. A configuration is every one in `latency`; its `status` is
    `ok` if at least one repeat is, else that of its first row. Times are geometric means over repeats, `tpot_low_ms`
    and `tpot_high_ms` their t-interval with `noise`, that of TPOT in the study; `e2e_ms` is end to end.
    `memory_gib` is the highest peak (`capacity.peak_gib`), where `memory` lacks the workload at the one with the same
    prompts and the nearest number of new tokens. `speedup` = reference TPOT / TPOT and `memory_ratio` = memory /
    reference memory, against the reference precision with the same attention under runtime `eager`; that configuration
    itself has a speedup of 1 without an interval, and the reference precision a PPL ratio of 1.

    Columns beyond the promised ones: `repeats` (with status ok), `tpot_degrees` (of freedom of the interval),
    `speedup_low, speedup_high, speedup_p, ppl_ratio_p` (unadjusted), `ppl_low, ppl_high`, `kl_low_nats, kl_high_nats`,
    `top1_low, top1_high` where `quality` has them, `quality_from` and `flags`. Quality measured only for another
    attention or runtime of the same model and precision is used too, and `quality_from` names where it was measured
    ("sdpa-math, eager"), empty otherwise.
    """
    measured = _at(latency, headline)
    peaks = _at(memory, replace(headline, **nearest_workload(memory, asdict(headline)))).assign(memory_gib=peak_gib)
    at_protocol = quality[(quality["corpus"] == headline.corpus) & (quality["protocol"] == headline.protocol)]
    rows = []
    for key, repeats in latency.groupby(CONFIGURATION, sort=False):
        configuration = dict(zip(CONFIGURATION, key))
        base = configuration | {"precision": reference[configuration["model"]], "runtime": "generate"}
        own = {"speed": _of(measured, configuration), "memory": _of(peaks, configuration)}
        own["quality"] = _of(at_protocol, {name: configuration[name] for name in ("model", "precision")})
        row = {column: repeats[column].iloc[0] for column in IDENTITY} | _outcome(own)
        row |= _speed(_ok(own["speed"]), None if configuration == base else _ok(_of(measured, base)), noise)
        row |= _memory(_ok(own["memory"]), _ok(_of(peaks, base)))
        row |= _quality(_ok(own["quality"]), configuration)
        if configuration["precision"] == base["precision"] and not math.isnan(row["ppl"]):
            row["ppl_ratio"] = 1.0
        rows.append(row)
    return pd.DataFrame(rows)


def _at(table: pd.DataFrame, headline: Headline) -> pd.DataFrame:
    """Rows of the workload, and failed rows that never came to a workload."""
    same = pd.Series(True, index=table.index)
    for column in WORKLOAD:
        same &= table[column] == getattr(headline, column)
    return table[same | (table["batch"].isna() & (table["status"] != "ok"))]


def _of(table: pd.DataFrame, configuration: Mapping[str, str]) -> pd.DataFrame:
    same = pd.Series(True, index=table.index)
    for column, value in configuration.items():
        same &= table[column] == value
    return table[same]


def _ok(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["status"] == "ok"]


def _outcome(own: Mapping[str, pd.DataFrame]) -> dict:
    """Status of the configuration is that of its speed; what else failed stands in the reason."""
    outcomes = {quantity: _status(rows) for quantity, rows in own.items() if quantity == "speed" or len(rows)}
    status, reason = outcomes.pop("speed")
    if status != "ok":
        return {"status": status, "reason": reason}
    notes = [reason] if reason else []
    notes += [f"{quantity}: {told or found}" for quantity, (found, told) in outcomes.items() if found != "ok"]
    return {"status": status, "reason": "; ".join(notes)}


def _status(rows: pd.DataFrame) -> tuple[str, str]:
    """`ok` if any row is, else the status of the first; with the reason of a failure."""
    if rows.empty:
        return "error", "this workload was not measured"
    failed = rows[rows["status"] != "ok"]
    if failed.empty:
        return "ok", ""
    status, reason = failed["status"].iloc[0], text(failed["reason"]).iloc[0]
    if len(failed) == len(rows):
        return status, reason
    return "ok", f"{len(failed)} of {len(rows)} repeats failed ({status}: {reason})"


def _speed(ok: pd.DataFrame, reference: pd.DataFrame | None, noise: SharedNoise) -> dict:
    """Speed of a configuration, against its reference unless it is that itself (None)."""
    own = _noise_of(ok, noise)
    tpot = process_interval(ok["tpot_ms"], own)
    if reference is None:
        speedup = without_interval(1.0 if len(ok) else math.nan)
    else:
        speedup = ratio(reference["tpot_ms"], ok["tpot_ms"], _noise_of(reference, noise), own)
    flags = {flag for cell in ok["flags"].dropna() for flag in str(cell).split("; ") if flag}
    return {
        "repeats": len(ok),
        "e2e_ms": process_interval(ok["e2e_ms"]).value,
        "ttft_ms": process_interval(ok["ttft_ms"]).value,
        "tpot_ms": tpot.value,
        "tpot_low_ms": tpot.low,
        "tpot_high_ms": tpot.high,
        "tpot_degrees": own.degrees if own else math.nan,
        "tokens_per_s": process_interval(ok["tokens_per_s"]).value,
        "mbu": process_interval(ok["mbu"]).value,
        "speedup": speedup.value,
        "speedup_low": speedup.low,
        "speedup_high": speedup.high,
        "speedup_p": speedup.p,
        "flags": "; ".join(sorted(flags)),
    }


def _noise_of(rows: pd.DataFrame, noise: SharedNoise) -> Noise | None:
    return noise.of(rows.iloc[0]) if len(rows) else None


def _memory(ok: pd.DataFrame, reference: pd.DataFrame) -> dict:
    own = ok["memory_gib"].max()
    return {
        "memory_gib": own,
        "weights_gib": ok["weights_gib"].max(),
        "memory_ratio": own / reference["memory_gib"].max(),
    }


def _quality(ok: pd.DataFrame, configuration: Mapping[str, str]) -> dict:
    """Quality of the configuration itself or, failing that, of the nearest one with the same weights."""
    if ok.empty:
        return dict.fromkeys(QUALITY, math.nan) | {"quality_from": ""}
    nearness = (ok["attention"] == configuration["attention"]) * 2 + (ok["runtime"] == configuration["runtime"])
    row = ok.loc[nearness.idxmax()]
    borrowed = "" if nearness.max() == 3 else f"{row['attention']}, {row['runtime']}"
    return {column: row.get(column, math.nan) for column in QUALITY} | {"quality_from": borrowed}
