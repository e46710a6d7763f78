"""sensitivity.csv: one row per part of the model that was rounded to int8 while the rest stayed as it is.

``layer`` or ``linear`` is ``all`` where a part spans them. ``precision`` is that of the rest, the reference.
``delta_nll`` in nats per token with standard error and 95 % interval over documents;
``kl_nats`` the mean KL divergence from the unrounded model, which ranks parts that ``delta_nll`` cannot tell apart.
"""

from __future__ import annotations

from pathlib import Path

from llmstudy.tables.columns import SHARED
from llmstudy.tables.common import identity, read_records, write_table

ALL = "all"
COLUMNS = [
    *SHARED,
    "layer",
    "linear",
    "delta_nll",
    "delta_nll_se",
    "delta_nll_low",
    "delta_nll_high",
    "kl_nats",
    "kl_se_nats",
    "tokens",
    "blocks",
]


def write(paths: list[str], output: Path) -> None:
    """Aggregate sensitivity records."""
    rows = [row for record in read_records(paths) for row in rows_of(record)]
    write_table(rows, COLUMNS, output)


def rows_of(record: dict) -> list[dict]:
    """A row for every part; one row with the status if nothing was measured."""
    results = record["results"]
    shared = identity(record) | {key: results.get(key) for key in ("tokens", "blocks")}
    rows = [
        shared
        | {
            "layer": ALL if part["layer"] is None else part["layer"],
            "linear": part["linear"] or ALL,
            "delta_nll": part["delta_nll"],
            "delta_nll_se": part["se"],
            "delta_nll_low": part["low"],
            "delta_nll_high": part["high"],
            "kl_nats": part["kl"],
            "kl_se_nats": part["kl_se"],
        }
        for part in results.get("parts", [])
    ]
    return rows or [shared]
