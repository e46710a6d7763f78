"""Memory as a function of batch size and context, and the largest workload that fits a device.

    peak(b, c) = weights + kv b c + fixed + b (row + token c + square c^2)

b sequences of c = prompt + new tokens; all sizes in GiB. Weights and KV cache are accounted for by tensor size; the
rest is workspace: `fixed` (library buffers), `row` (logits), `token` (activations of the prefill), `square`
(attention scores of a kernel that writes them out). Everything that depends on the workload is proportional to the
batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd

from llmstudy.errors import StudyError

PEAKS = ["peak_load_gib", "peak_prefill_gib", "peak_decode_gib"]


@dataclass(frozen=True)
class MemoryModel:
    """Coefficients in GiB (see the module).

    `load`: peak while loading, 0 on a CPU (see `peak_gib`). `residual`: largest error on the fitted `rows`; it says
    nothing where there are no more of them than coefficients.
    """

    weights: float
    kv: float
    fixed: float
    row: float
    token: float
    square: float
    load: float
    residual: float
    rows: int

    def peak_gib(self, batch: float, context: float) -> float:
        """Predicted peak of `batch` sequences of `context` tokens, loading included."""
        return max(self.load, self._base + batch * self._per_sequence(context))

    def largest_batch(self, context: int, device_gib: float) -> int:
        """The largest batch whose sequences of `context` tokens fit into `device_gib`; 0 if not even one does."""
        if max(self.load, self._base) > device_gib:
            return 0
        return math.floor((device_gib - self._base) / self._per_sequence(context) + 1e-9)

    @property
    def _base(self) -> float:
        return self.weights + self.fixed

    def _per_sequence(self, context: float) -> float:
        return self.row + (self.kv + self.token) * context + self.square * context**2


def peak_gib(memory: pd.DataFrame, phases: Sequence[str] = tuple(PEAKS)) -> pd.Series:
    """Peak memory of each row of `memory.csv`, GiB: the highest of its phases, or the host RSS where there are none.

    On a CPU loading is left out: while it reads, the process's growth holds pages of the mapped weight file, which the
    kernel can take back, and holds none of them where the file is used as it is.
    """
    peaks = _peaks(memory, phases)
    return peaks.max(axis=1).fillna(memory.reindex(columns=["peak_rss_gib"])["peak_rss_gib"].astype(float))


def _peaks(memory: pd.DataFrame, phases: Sequence[str]) -> pd.DataFrame:
    peaks = memory.reindex(columns=list(phases)).astype(float)
    if "device" in memory and "peak_load_gib" in peaks:
        peaks["peak_load_gib"] = peaks["peak_load_gib"].where(memory["device"] != "cpu")
    return peaks


def fit_memory(rows: pd.DataFrame) -> MemoryModel:
    """Fit the memory model to the rows of `memory.csv` of one model, precision, attention and runtime.

    Uses rows with status `ok` and a measured peak. Weights (median of `weights_gib`) and KV cache (`kv_cache_gib`
    over batch x context) are taken as accounted; what the peak of prefill and decode has above them is fitted by
    non-negative least squares, with as many workspace terms as there are distinct workloads (in the order fixed,
    token, square, row), so that a term that the rows cannot tell from another is left at zero. Raises StudyError with
    fewer than two distinct workloads or if memory does not grow between them.
    """
    measured = rows[(rows["status"] == "ok") & peak_gib(rows, PEAKS[1:]).notna()]
    batch = measured["batch"].to_numpy(dtype=float)
    context = (measured["prompt_tokens"] + measured["new_tokens"]).to_numpy(dtype=float)
    distinct = len(set(zip(batch, context)))
    if distinct < 2:
        raise StudyError(f"memory.csv: the memory model needs at least 2 measured workloads, there is {distinct}")
    accounted = measured.reindex(columns=["weights_gib", "kv_cache_gib"]).astype(float).fillna(0.0)
    weights = float(accounted["weights_gib"].median())
    tokens = batch * context
    kv = float(accounted["kv_cache_gib"].to_numpy() @ tokens / (tokens @ tokens))
    peak = peak_gib(measured, PEAKS[1:]).to_numpy()
    terms = np.stack([np.ones_like(batch), tokens, batch * context**2, batch], axis=1)[:, :distinct]
    fitted = np.zeros(4)
    fitted[: terms.shape[1]] = non_negative_least_squares(terms, peak - weights - kv * tokens)
    fixed, token, square, row = (float(value) for value in fitted)
    if kv + token + square + row == 0:
        raise StudyError("memory.csv: measured memory does not grow with the workload, so no capacity can be derived")
    load = float(_peaks(measured, PEAKS[:1]).max().fillna(0.0).iloc[0])
    model = MemoryModel(weights, kv, fixed, row, token, square, load, math.nan, len(measured))
    errors = [abs(weights + fixed + b * model._per_sequence(c) - p) for b, c, p in zip(batch, context, peak)]
    return replace(model, residual=float(max(errors)))


def non_negative_least_squares(terms: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The x >= 0 that minimises |terms x - target|, by trying every set of active columns.

    `terms`: (rows, columns), at most a handful of columns. Exact: the optimum is the unconstrained solution on its own
    support (Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23). Of equally good sets the smallest and
    leftmost wins, so collinear columns stay at zero.
    """
    scale = np.abs(terms).max(axis=0)
    scaled = terms / np.where(scale > 0, scale, 1.0)
    best = np.zeros(terms.shape[1])
    error = float(target @ target)
    for size in range(1, terms.shape[1] + 1):
        for chosen in map(list, combinations(range(terms.shape[1]), size)):
            solution, _, rank, _ = np.linalg.lstsq(scaled[:, chosen], target)
            left = float(((scaled[:, chosen] @ solution - target) ** 2).sum())
            if rank == size and (solution >= 0).all() and left < error * (1 - 1e-9) - 1e-18:
                best, error = np.zeros(terms.shape[1]), left
                best[chosen] = solution
    return best / np.where(scale > 0, scale, 1.0)


def capacity_table(model: MemoryModel, contexts: Sequence[int], device_gib: float) -> pd.DataFrame:
    """The predicted frontier of a device: per context the largest batch that fits and the first that does not.

    Columns: `context_tokens, largest_batch, fits_gib, first_too_large, too_large_gib, residual_gib, fitted_rows`;
    `fits_gib` is NaN where nothing fits, the last two say what the fit rests on. Running both batches verifies the
    prediction.
    """
    rows = []
    for context in contexts:
        batch = model.largest_batch(context, device_gib)
        fits = model.peak_gib(batch, context) if batch else math.nan
        rows.append((context, batch, fits, batch + 1, model.peak_gib(batch + 1, context)))
    table = pd.DataFrame(
        rows, columns=["context_tokens", "largest_batch", "fits_gib", "first_too_large", "too_large_gib"]
    )
    return table.assign(residual_gib=model.residual, fitted_rows=model.rows)


def measured_frontier(rows: pd.DataFrame) -> pd.DataFrame:
    """The frontier that the measured rows of one configuration locate: per context the largest batch that ran and the
    smallest that ran out of memory.

    Columns: `context_tokens, largest_ok, smallest_oom`; NaN where none was tried.
    """
    tried = rows.assign(context_tokens=rows["prompt_tokens"] + rows["new_tokens"])
    batches = {
        name: tried[tried["status"] == status].groupby("context_tokens")["batch"]
        for name, status in (("largest_ok", "ok"), ("smallest_oom", "oom"))
    }
    frontier = pd.DataFrame({"largest_ok": batches["largest_ok"].max(), "smallest_oom": batches["smallest_oom"].min()})
    return frontier.rename_axis("context_tokens").reset_index()
