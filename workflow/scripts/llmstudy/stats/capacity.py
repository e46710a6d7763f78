"""Memory as a function of batch size and context, and the largest batch that fits a device.

    peak(b, c) = weights + kv b c + fixed + b (row + token c + square c²)

b sequences of c = prompt + new tokens; all sizes in GiB. Weights and KV cache are accounted for by tensor size; the
rest is workspace: ``fixed`` (library buffers), ``row`` (logits), ``token`` (activations of the prefill), ``square``
(attention scores of a kernel that writes them out). Everything that depends on the workload is proportional to the
batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import nnls

ROUNDING = 1e-9  # GiB: a smaller residual is rounding, and differs from CPU to CPU


@dataclass(frozen=True)
class Usage:
    """Memory of one measured workload, in GiB: weights and KV cache by tensor size, and the peak of the run."""

    batch: int
    context: int
    weights: float
    kv_cache: float
    peak: float


@dataclass(frozen=True)
class MemoryModel:
    """Coefficients in GiB (see the module), the peak while loading (0 where it sets no limit) and the number of fitted
    workloads with the largest error on them, which says nothing where they are no more than the coefficients."""

    weights: float
    kv: float
    fixed: float
    row: float
    token: float
    square: float
    load: float = 0.0
    residual: float = math.nan
    rows: int = 0

    def peak_gib(self, batch: float, context: float) -> float:
        """Return the predicted peak of ``batch`` sequences of ``context`` tokens, loading included."""
        return max(self.load, self.weights + self.fixed + batch * self._sequence_gib(context))

    def largest_batch(self, context: int, device_gib: float) -> int:
        """Return the largest batch of ``context`` tokens that fits into ``device_gib``, 0 if not even 1 does."""
        if self.peak_gib(0, context) > device_gib:
            return 0
        return math.floor((device_gib - (self.weights + self.fixed)) / self._sequence_gib(context) + 1e-9)

    def _sequence_gib(self, context: float) -> float:
        return self.row + (self.kv + self.token) * context + self.square * context**2


def fit_memory(measured: Sequence[Usage], load: float = 0.0) -> MemoryModel:
    """Fit the memory model to the measured workloads of one configuration; ``load`` is the peak while loading in GiB.

    Weights (median) and KV cache (per token) are taken as accounted. What the peak has above them is fitted by
    non-negative least squares (Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23), with as many
    workspace terms as there are distinct workloads, in the order fixed, token, square, row; a term that the workloads
    cannot tell from those before it stays 0. Raise ValueError for fewer than two distinct workloads, or if memory does
    not grow between them.
    """
    distinct = len({(usage.batch, usage.context) for usage in measured})
    if distinct < 2:
        raise ValueError(f"the memory model needs at least 2 measured workloads, there is {distinct}")
    batch, context, weights, kv_cache, peak = np.array(
        [(usage.batch, usage.context, usage.weights, usage.kv_cache, usage.peak) for usage in measured], dtype=float
    ).T
    tokens = batch * context
    base, kv = float(np.median(weights)), float(kv_cache @ tokens / (tokens @ tokens))
    terms = np.stack([np.ones_like(batch), tokens, batch * context**2, batch], axis=1)[:, :distinct]
    scales = np.abs(terms).max(axis=0)
    kept: list[int] = []
    for column in range(terms.shape[1]):
        if np.linalg.matrix_rank((terms / scales)[:, [*kept, column]]) > len(kept):
            kept.append(column)
    fitted = np.zeros(4)
    fitted[kept] = nnls((terms / scales)[:, kept], peak - base - kv * tokens)[0] / scales[kept]
    fixed, token, square, row = map(float, fitted)
    if kv + token + square + row == 0:
        raise ValueError("measured memory does not grow with the workload, so no capacity can be derived")
    run = MemoryModel(base, kv, fixed, row, token, square)
    residual = max(abs(run.peak_gib(usage.batch, usage.context) - usage.peak) for usage in measured)
    return replace(run, load=load, residual=residual if residual >= ROUNDING else 0.0, rows=len(measured))
