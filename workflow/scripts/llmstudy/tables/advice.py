"""advice.csv: which configuration to take for each use of a model, from the limits and margins of the config.

Candidates are the measured configurations at the workload of the use that meet every limit with the worse end of what
is known (the slowest process, the upper end of the interval of the loss; what has none is not shown to meet a limit on
it). A precision whose numbers are not finite is none. Where one's quality is known, those whose quality is not are
none. Where the config sets no limit on quality, a loss excludes a configuration only if it is *shown* to exceed the
margin; if each is, the least loss is named, and not taken. Of the candidates the fastest by estimate is taken. Another
stands before it only if it is shown to be within the margin of it, and saves at least 5 % of the device's memory.
``instead`` names candidates, three at most, that are neither shown to be slower than the taken one nor shown to be as
fast: the data cannot choose between them. ``note`` names what is faster, or smaller, and was left out for what is not
known of it.

- ``one user``: TPOT at batch 1. ``long context``: TPOT at batch 1 and the longest prompt. ``batch serving``: the time
  of a whole call at the largest batch.
- ``smallest memory``: the least memory, at the headline workload; of equal ones the fastest. ``closest to the
  original``: of the precisions beside the reference the one with the least KL divergence, as its fastest configuration.

``verdict`` is ``take``; ``too noisy to say`` where ``instead`` names others; ``fastest in this study`` or ``least
memory in this study`` where the quality of all is not known (random weights, or not measured); ``least loss in this
study`` where each is shown to lose too much; ``nothing meets the limits``; ``not shown to meet the limits``; ``not
measured``. ``evidence``: A for real weights and five processes or more, B for random weights or three or four
processes, C for fewer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from llmstudy.stats import panels
from llmstudy.tables import Sources
from llmstudy.tables.capacity import device_memory_gib
from llmstudy.tables.columns import IDENTITY, SHARED, WORKLOAD, columns, interval, listed, number, percent, pick, where
from llmstudy.tables.probes import nearest_workload
from llmstudy.tables.quality import OVERFLOW, REFERENCE, exceeds, loss_words
from llmstudy.tables.speed import COLUMNS as SPEED
from llmstudy.tables.speed import KEY, again, blocks, name_of, ok
from llmstudy.tables.summary import COLUMNS as SUMMARY
from llmstudy.tables.summary import OF_LOSS, OF_QUALITY, UNMEASURED

COLUMNS = {
    "advice": [
        *SHARED,
        *columns("use:text"),
        *pick(SPEED["speed"], " ".join(WORKLOAD)),
        *columns("verdict:text against:text"),
        *interval("speedup", "speedup_low", "speedup_high", "speed-up"),
        *pick(SPEED["speed"], "tpot_ms tokens_per_s"),
        *pick(SUMMARY["summary"], "memory_gib memory_ratio " + " ".join(OF_LOSS) + " processes"),
        *columns("evidence:text instead:text note:text sentence:text"),
    ]
}
ONE, LONG, BATCH = "one user", "long context", "batch serving"
SMALL, CLOSE = "smallest memory", "closest to the original"
# Key of the config's limits: column that must not lie beyond it, sign 1 for at most and −1 for at least, its words.
LIMITS = {
    "memory_gib": ("memory_gib", 1, "{} GiB of memory"),
    "tpot_ms": ("tpot_ms_max", 1, "{} ms a token"),
    "ppl_loss_percent": ("loss_percent", 1, "a perplexity loss of {} %"),
    "top1_agreement": ("top1_low", -1, "a top-1 agreement of {}"),
}
ON_QUALITY = ("ppl_loss_percent", "top1_agreement")
UNKNOWN = {SMALL: "Memory was not measured.", CLOSE: "No other precision was compared with the original."}
MANY, SOME = 5, 3  # processes
NAMED = 3  # of those that cannot be told from the taken one
# A driver counts memory in pages of 2 MiB, and two readings of the same differ by one: less is no difference.
SAME_GIB = 4 / 1024


@dataclass(frozen=True)
class Case:
    """A use: the workload that it looks at, and the time that counts there."""

    use: str
    workload: Mapping[str, int]
    quantity: str = "tpot"


def advice(sources: Sources) -> list[dict]:
    """Return a row for every model and use."""
    sizes = [device_memory_gib(record["provenance"]) for record in sources.records]
    device_gib = min(sizes, default=math.inf)
    rows = []
    for model, own in sources.tables["summary"].groupby("model", sort=False):
        tables = {name: where(sources.tables[name], {"model": model}) for name in ("speed", "probes", "processes")}
        real = own["weights"].iloc[0] == "real"
        for case in cases(sources.study["headline"][model], sources.study["workloads"][model], real):
            rows.append(advise(case, own, tables, sources.study, device_gib))
    return rows


def cases(headline: Mapping, workloads: list[dict], real: bool) -> list[Case]:
    """Return the uses that the workloads of a model tell something about; random weights are close to nothing."""
    first = {name: headline[name] for name in WORKLOAD}
    single = [one for one in workloads if one["batch"] == 1]
    found = []
    if single:
        shortest = first if first["batch"] == 1 else min(single, key=lambda one: one["prompt_tokens"])
        longest = max(single, key=lambda one: one["prompt_tokens"])
        found.append(Case(ONE, shortest))
        if longest["prompt_tokens"] > shortest["prompt_tokens"]:
            found.append(Case(LONG, longest))
    widest = max(workloads, key=lambda one: (one["batch"], -one["prompt_tokens"]))
    if widest["batch"] > 1:
        found.append(Case(BATCH, widest, "e2e"))
    return found + [Case(SMALL, first)] + [Case(CLOSE, first)] * real


def advise(case: Case, summary: pd.DataFrame, tables: dict, study: Mapping, device_gib: float) -> dict:
    """Return the row of one model and use."""
    rows = candidates_of(case, summary, tables)
    identity = summary.iloc[0][IDENTITY].to_dict() | dict.fromkeys(KEY, "")
    row = identity | {"status": "ok", "reason": "", "use": case.use} | dict(case.workload)
    if rows.empty:
        tried = where(tables["speed"], {**case.workload, "again": "no"})
        failed = "; ".join(f"{name_of(tuple(one[KEY]))}: {one['status']}" for _, one in tried.iterrows())
        row |= {"status": tried.iloc[0]["status"] if len(tried) else "error", "reason": failed or UNMEASURED}
        return row | {"verdict": "not measured", "sentence": "No configuration was measured at this workload."}
    kept, unknown, limits = within(rows, study["limits"])
    if kept.empty and unknown.empty:
        return row | {"verdict": "nothing meets the limits", "sentence": f"No configuration keeps {limits}."}
    if kept.empty:
        sentence = f"No configuration is shown to keep {limits}. Not known of {names_of(unknown)}."
        return row | {"verdict": "not shown to meet the limits", "sentence": sentence}
    margin_percent = study["margin_percent"]["perplexity"]
    known = kept["ppl_ratio"].notna()
    ungraded, kept = (kept[~known], kept[known]) if known.any() else (kept[known], kept)
    lost = exceeds(kept, margin_percent) & all(study["limits"].get(key) is None for key in ON_QUALITY)
    if case.use != CLOSE:
        kept = kept[kept["ppl_ratio"] == kept["ppl_ratio"].min()] if lost.all() else kept[~lost]
    reference = study["headline"][row["model"]]["reference"]
    taken, others = chosen(case, kept, tables["processes"], study, device_gib, reference)
    if taken is None:
        return row | {"verdict": "not measured", "sentence": UNKNOWN[case.use]}
    speed = {end: taken[f"{case.quantity}_{end}"] for end in ("speedup", "speedup_low", "speedup_high")}
    row |= taken[[*KEY, "against", "tpot_ms", "tokens_per_s", "memory_gib", "memory_ratio", *OF_LOSS]].to_dict()
    row |= speed | {"processes": taken["processes"], "evidence": evidence(taken)}
    row |= {"instead": "; ".join(name_of(key) for key in others[:NAMED])}
    row |= {"verdict": verdict_of(case, taken, others, bool(lost[taken.name]))}
    each = f"Every candidate is shown to lose more than {margin_percent:g} %; this one loses the least."
    notes = better(case, taken, ungraded, "what it loses is not known")
    notes += better(case, taken, unknown, "not known to keep the limits")
    row["note"] = " ".join([each] * bool(lost.all()) + notes)
    return row | {"sentence": sentence_of(row, taken, margin_percent)}


def names_of(rows: pd.DataFrame) -> str:
    """Return the names of the first few configurations."""
    return listed((name_of(tuple(key)) for key in rows[KEY].to_numpy()[:NAMED]), "or")


def better(case: Case, taken: pd.Series, rows: pd.DataFrame, why_not: str) -> list[str]:
    """Return which rows that were left out are faster, or smaller, than the taken one, and why they are not taken."""
    quantity = "memory_gib" if case.use == SMALL else f"{case.quantity}_ms"
    names = "" if case.use == CLOSE else names_of(rows[rows[quantity] < taken[quantity]])
    return [f"{'Smaller' if case.use == SMALL else 'Faster'}, but {why_not}: {names}."] * bool(names)


def candidates_of(case: Case, summary: pd.DataFrame, tables: dict) -> pd.DataFrame:
    """Return the measured configurations at a workload: their times there, memory there, quality of their precision."""
    speed = where(tables["speed"], case.workload)
    speed = ok(speed[speed["again"] == "no"])
    probes = where(tables["probes"], nearest_workload(tables["probes"], case.workload))
    quality = summary[[*KEY, *OF_QUALITY, *OF_LOSS]]
    rows = speed.merge(ok(probes)[[*KEY, "memory_gib"]], how="left", on=KEY).merge(quality, how="left", on=KEY)
    memory = {name_of(tuple(one[KEY])): one["memory_gib"] for _, one in rows.iterrows()}
    rows["memory_ratio"] = rows["memory_gib"] / rows["against"].map(memory).astype(float)
    # A limit is kept with the worse end of an interval, and not without one. The reference loses nothing and agrees
    # with itself, whatever a second run of it did.
    original = rows["ppl_verdict"] == REFERENCE
    rows["loss_percent"] = 100 * (rows["ppl_ratio_high"].mask(original, 1.0) - 1)
    rows["top1_low"] = rows["top1_low"].mask(original, 1.0)
    return rows


def within(rows: pd.DataFrame, limits: Mapping[str, float | None]) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Return the rows that keep every limit, those of which it is not known, and in words the limits that none keeps;
    random weights have no quality to limit."""
    random = rows["weights"].iloc[0] == "synthetic"
    finite = rows["ppl_verdict"] != OVERFLOW
    kept = possible = finite
    missed = [] if finite.any() else ["to numbers that are finite"]
    for key, (column, sign, words) in LIMITS.items():
        bound = limits.get(key)
        if bound is None or (random and key in ON_QUALITY):
            continue
        keeps = sign * (rows[column] - bound) <= 0
        kept, possible = kept & keeps, possible & (keeps | rows[column].isna())
        missed += [words.format(number(bound))] if not keeps.any() else []
    return rows[kept], rows[possible & ~kept], " and ".join(missed) or "all limits at once"


def chosen(
    case: Case, kept: pd.DataFrame, processes: pd.DataFrame, study: Mapping, device_gib: float, reference: str
) -> tuple[pd.Series | None, tuple]:
    """Return the row that is taken, and the keys of those that the data cannot tell from it."""
    if case.use == CLOSE:
        kept = kept[(kept["precision"] != reference) & kept["ppl_ratio"].notna()]
        kept = kept[kept["kl_nats"] == kept["kl_nats"].min()]
        return (None if kept.empty else kept.loc[kept["tpot_ms"].idxmin()]), ()
    if case.use == SMALL:
        known = kept[kept["memory_gib"].notna()]
        if known.empty:
            return None, ()
        least = known[known["memory_gib"] <= known["memory_gib"].min() + SAME_GIB]
        return least.loc[least["tpot_ms"].idxmin()], ()
    here = ok(where(processes, case.workload))
    timed = blocks(here, f"{case.quantity}_ms")
    keys = {(*row[KEY], "no"): index for index, row in kept.iterrows()}
    family = {key: key[2] for block in timed for key in block}
    memory = {key: float(kept.loc[index, "memory_gib"]) for key, index in keys.items()}
    margin = study["margin_percent"]["speed"] / 100
    taken, unsettled = panels.choose(timed, list(keys), family, memory, device_gib, margin, again(family))
    return kept.loc[keys[taken]], tuple(key[:-1] for key in unsettled)


def verdict_of(case: Case, taken: pd.Series, others: tuple, lost: bool) -> str:
    """Return the word for what the row says."""
    if taken["weights"] == "synthetic" or pd.isna(taken["ppl_ratio"]):
        return "least memory in this study" if case.use == SMALL else "fastest in this study"
    if lost:
        return "least loss in this study"
    return "too noisy to say" if others else "take"


def evidence(taken: pd.Series) -> str:
    """Return the grade of what a row rests on."""
    if taken["processes"] < SOME:
        return "C"
    return "A" if taken["weights"] == "real" and taken["processes"] >= MANY else "B"


def sentence_of(row: Mapping, taken: pd.Series, margin_percent: float) -> str:
    """Return the advice in plain sentences."""
    name, others, facts = name_of(tuple(taken[KEY])), row["instead"].split("; ") * bool(row["instead"]), []
    if name != row["against"] and pd.notna(row["speedup"]):
        ends = (
            "" if pd.isna(row["speedup_low"]) else f" ({number(row['speedup_low'])} to {number(row['speedup_high'])})"
        )
        facts.append(f"{number(row['speedup'])} times as fast as {row['against']}{ends}")
    if pd.notna(row["memory_gib"]):
        other = name != row["against"] and pd.notna(row["memory_ratio"])
        facts.append(f"{number(row['memory_gib'])} GiB" + (f", {number(row['memory_ratio'])} times its memory" * other))
    noisy = row["verdict"] == "too noisy to say"
    said = f"{row['verdict'].capitalize()}{' ' if row['verdict'] == 'take' else ': '}"
    said += listed([name, *others * noisy], "or")
    more = f"Perhaps as fast: {listed(others, 'or')}." if others and not noisy else ""
    return " ".join(filter(None, [f"{', '.join([said, *facts])}.", more, loss_of(taken, margin_percent), row["note"]]))


def loss_of(taken: pd.Series, margin_percent: float) -> str:
    """Return what is known of the loss, in a sentence."""
    if taken["weights"] == "synthetic":
        return "What it loses is not known: the weights are random."
    if pd.isna(taken["ppl_ratio"]):
        return "What it loses is not known: it was not compared with the original."
    if taken["ppl_verdict"] == REFERENCE:
        return "It is the original."
    return f"Perplexity {percent(taken['ppl_ratio'])}, {loss_words(taken, margin_percent)}."
