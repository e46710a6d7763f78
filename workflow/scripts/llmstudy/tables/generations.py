"""generations.csv and text.csv: generated texts beside those of the reference, one by one and taken together.

generations.csv has one row per precision and prompt. ``first_divergence_token`` counts generated tokens from 0 and is
empty where the texts never differ.

text.csv has one row per configuration. ``exact_match`` is the share of prompts whose text is that of the reference,
``never_diverged`` their number. ``agreement_<k>`` is the share still identical after k generated tokens,
``identical_tokens_mean`` the mean number of identical tokens before the first that differs.
``first_divergence_median_token`` counts an identical text as one that diverges later than any other, and is empty where
these are half or more. All of them are empty for the reference itself and where it has no text; ``agreement_<k>`` also
where texts are shorter than k. ``distinct_2_mean`` and ``repetition_4_mean`` are means over prompts.
"""

from __future__ import annotations

import pandas as pd

from llmstudy.stats.text import agreement_curve, distinct_n, first_divergence, median_divergence
from llmstudy.tables import Sources
from llmstudy.tables.columns import IDENTITY, SHARED, Column, columns
from llmstudy.tables.records import by_key, identity

POSITIONS = (8, 16, 32, 64)
COLUMNS = {
    "generations": columns(
        "prompt:text text:text reference_text:text first_divergence_token:count new_tokens:count distinct_2:percent "
        "repetition_4:percent",
        SHARED,
    ),
    "text": [
        *columns("prompts:count new_tokens:count exact_match:percent", SHARED),
        Column("never_diverged", "texts identical", "count"),
        Column("first_divergence_median_token", "first difference, median"),
        Column("identical_tokens_mean", "identical tokens, mean"),
        *(Column(f"agreement_{position}", f"identical after {position}", "percent") for position in POSITIONS),
        Column("distinct_2_mean", "distinct-2"),
        Column("repetition_4_mean", "repeated 4-grams"),
    ],
}


def generations(sources: Sources) -> list[dict]:
    """Return a row for every prompt that a record was to continue, generated or not."""
    rows = []
    for record, reference in sources.paired():
        entries, others = (by_key(side, "prompts", "prompt") for side in (record, reference))
        for prompt in record["settings"]["prompts"]:
            entry, other = entries.get((prompt,)), others.get((prompt,))
            row = identity(record) | {"prompt": prompt, "reference_text": other and other["text"]}
            if entry:
                tokens = entry["tokens"]
                row |= {"status": "ok", "reason": "", "text": entry["text"], "new_tokens": len(tokens)}
                row |= {"distinct_2": distinct_n(tokens, 2), "repetition_4": 1 - distinct_n(tokens, 4)}
                if other:
                    row["first_divergence_token"] = first_divergence(other["tokens"], tokens)
            rows.append(row)
    return rows


def text(sources: Sources) -> list[dict]:
    """Return a row per configuration over the prompts that it finished, or its status if it finished none."""
    rows = []
    for key, texts in sources.tables["generations"].groupby(IDENTITY, sort=False):
        done = texts[texts["status"] == "ok"]
        row = dict(zip(IDENTITY, key)) | texts.iloc[0][["status", "reason"]].to_dict()
        if len(done):
            row |= {"status": "ok", "reason": "", "prompts": len(done), "new_tokens": int(done["new_tokens"].min())}
            row |= {f"{name}_mean": done[name].mean() for name in ("distinct_2", "repetition_4")}
        if len(compared_texts := compared(done, sources.reference(row["model"]))):
            row |= agreement(compared_texts) | {"prompts": len(compared_texts)}
        rows.append(row)
    return rows


def compared(generations: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Return the rows of generations.csv whose text can be compared with that of another precision, the reference."""
    both = (generations["status"] == "ok") & (generations["reference_text"] != "")
    return generations[both & (generations["precision"] != reference)]


def divergences(generations: pd.DataFrame) -> list[int | None]:
    """Return the first token that differs, per prompt; None where the texts are identical."""
    return [None if pd.isna(token) else int(token) for token in generations["first_divergence_token"]]


def agreement(generations: pd.DataFrame) -> dict:
    """Return the columns that compare the texts of one configuration with those of the reference."""
    first, tokens = divergences(generations), int(generations["new_tokens"].min())
    curve = agreement_curve(first, tokens)
    return {
        "exact_match": first.count(None) / len(first),
        "never_diverged": first.count(None),
        "first_divergence_median_token": median_divergence(first),
        # The area under the curve: each text counts the positions that it reaches unchanged.
        "identical_tokens_mean": curve[1:].sum(),
        **{f"agreement_{position}": curve[position] for position in POSITIONS if position <= tokens},
    }
