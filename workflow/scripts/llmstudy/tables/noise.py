"""Noise of times between processes, shared by configurations whose steps are launched alike.

Two processes per configuration say little about their own spread, and large models are measured by one alone. What
moves a time from process to process is the machine and the way in which steps are launched: a captured graph repeats
within a per cent where steps launched one by one depend on the host. So the spread is pooled within a runtime, never
over two.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace

import pandas as pd

from llmstudy.stats.processes import Noise, pooled_noise
from llmstudy.tables.columns import CONFIGURATION, WORKLOAD

NEAR = ["model", "runtime", *WORKLOAD]
REPEATED = ["study", *CONFIGURATION]  # what a process of its own measures


@dataclass(frozen=True)
class SharedNoise:
    """Noise of one quantity of a study, or of several on one machine.

    `near`: by (model, runtime, batch, prompt tokens, new tokens). `far`: by runtime, over all models and workloads.
    """

    near: Mapping[tuple[Hashable, ...], Noise]
    far: Mapping[str, Noise]

    def of(self, row: Mapping) -> Noise | None:
        """The noise of a configuration at a workload: that of its own model, else of the study; None if unknown."""
        return self.near.get(tuple(row[column] for column in NEAR)) or self.far.get(row["runtime"])


def shared_noise(latency: pd.DataFrame, quantity: str) -> SharedNoise:
    """The noise of `quantity` from the repeats in `processes.csv` of one study, or of several below each other.

    Workloads of one process share what distinguishes it from the next, so the noise of a whole study has only the
    degrees of freedom of its processes, however many workloads they measured.
    """
    measured = latency[(latency["status"] == "ok") & latency[quantity].notna()]
    near = {key: pooled_noise(_samples(rows, quantity)) for key, rows in measured.groupby(NEAR)}
    far = {}
    for runtime, rows in measured.groupby("runtime"):
        pooled = pooled_noise(_samples(rows, quantity))
        if pooled:
            processes = rows.groupby([*REPEATED, *WORKLOAD]).size().groupby(level=REPEATED).max()
            far[runtime] = replace(pooled, degrees=int((processes - 1).sum()))
    return SharedNoise({key: noise for key, noise in near.items() if noise}, far)


def _samples(rows: pd.DataFrame, quantity: str) -> list[pd.Series]:
    """The processes of every configuration at every workload."""
    return [sample for _, sample in rows.groupby([*REPEATED, *WORKLOAD])[quantity]]
