"""text.csv: one row per configuration that wrote generations, its prompts taken together.

``exact_match`` is the share of prompts whose text never parts from the reference's, ``never_diverged`` their number.
``agreement_<k>`` is the share still identical after k generated tokens, ``identical_tokens_mean`` the mean number of
identical ones before the first that differs. ``first_divergence_median_token`` counts a text that never parts as one
that parts later than any other, and is empty where these are half or more. All of them are empty for the reference
itself and where it left no text; ``agreement_<k>`` also where texts are shorter than k. ``distinct_2_mean`` and
``repetition_4_mean`` are means over prompts of generations.csv's columns.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from llmstudy.stats.text import agreement_curve, exact_match, median_divergence
from llmstudy.tables.columns import SHARED
from llmstudy.tables.common import read_table, write_table

POSITIONS = (8, 16, 32, 64)
COLUMNS = [
    *SHARED,
    "prompts",
    "new_tokens",
    "exact_match",
    "never_diverged",
    "first_divergence_median_token",
    "identical_tokens_mean",
    *(f"agreement_{position}" for position in POSITIONS),
    "distinct_2_mean",
    "repetition_4_mean",
]


def write(generations: Path, reference: str, output: Path) -> None:
    """Summarise generations.csv; ``reference`` is the precision that the others are compared with."""
    write_table(rows_of(read_table(generations), reference), COLUMNS, output)


def rows_of(generations: pd.DataFrame, reference: str) -> list[dict]:
    """A row per configuration over the prompts that it finished; its status and reason if it finished none."""
    rows = []
    for key, own in generations.groupby(SHARED[:7], sort=False):
        done = own[own["status"] == "ok"]
        row = dict(zip(SHARED[:7], key)) | own.iloc[0][["status", "reason"]].to_dict()
        if len(done):
            row |= {
                "status": "ok",
                "reason": "",
                "prompts": len(done),
                "new_tokens": int(done["new_tokens"].min()),
                "distinct_2_mean": done["distinct_2"].mean(),
                "repetition_4_mean": done["repetition_4"].mean(),
            }
        if len(held := compared(done, reference)):
            row |= agreement(held) | {"prompts": len(held)}
        rows.append(row)
    return rows


def compared(generations: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Rows of generations.csv with a text of another precision to hold against the reference's."""
    there = (generations["status"] == "ok") & (generations["reference_text"] != "")
    return generations[there & (generations["precision"] != reference)]


def divergences(generations: pd.DataFrame) -> list[int | None]:
    """First token that differs, per prompt; None where the texts are identical."""
    return [None if pd.isna(token) else int(token) for token in generations["first_divergence_token"]]


def agreement(generations: pd.DataFrame) -> dict:
    """The columns that compare one configuration's texts with the reference's."""
    parted, tokens = divergences(generations), int(generations["new_tokens"].min())
    curve = agreement_curve(parted, tokens)
    return {
        "exact_match": exact_match(parted),
        "never_diverged": parted.count(None),
        "first_divergence_median_token": median_divergence(parted),
        # The area under the curve: each text counts the positions that it reaches unchanged.
        "identical_tokens_mean": curve[1:].sum(),
        **{f"agreement_{position}": curve[position] for position in POSITIONS if position <= tokens},
    }
