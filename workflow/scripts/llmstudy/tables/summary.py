"""summary.csv and recommendation.csv: the tables of a study joined, judged and answered."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from llmstudy.files import atomic_write
from llmstudy.tables.common import read_table
from llmstudy.tables.noise import shared_noise
from llmstudy.tables.recommendation import recommend
from llmstudy.tables.summarise import Headline, summarise
from llmstudy.tables.verdict import judge


def write(folder: Path, headline: dict[str, dict], limits: dict, smallest: dict) -> None:
    """Write both tables of the study in ``folder``.

    headline     per model: its reference precision, and the workload, corpus and protocol that its one row speaks of
    limits    what a configuration must keep to be recommended
    smallest  smallest effect worth caring about, per cent, for ``tpot``, ``memory`` and ``ppl``
    """
    tables = {name: read_table(folder / f"{name}.csv") for name in ("processes", "memory", "quality")}
    reference = {model: entry["reference"] for model, entry in headline.items()}
    noise = shared_noise(tables["processes"], "tpot_ms")
    parts = []
    for model, entry in headline.items():
        own = {name: table[table["model"] == model] for name, table in tables.items()}
        keys = ("batch", "prompt_tokens", "new_tokens", "corpus", "protocol")
        told = Headline(**{key: entry[key] for key in keys})
        parts.append(summarise(**own, reference=reference, headline=told, noise=noise))
    judged = judge(pd.concat(parts, ignore_index=True), reference, smallest)
    for name, table in (("summary", judged), ("recommendation", recommend(judged, reference, limits, smallest))):
        with atomic_write(folder / f"{name}.csv") as file:
            table.to_csv(file, index=False, float_format="%.6g")
