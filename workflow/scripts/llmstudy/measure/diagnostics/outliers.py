"""Outlier statistics for LLM.int8(): which inputs of each linear layer carry activations over a threshold.

Dettmers et al. 2022 (arXiv:2208.07339), section 3: an input column (feature) with a magnitude over the threshold in any
token is an outlier column, and its product stays in 16 bit. Here a column counts as soon as one token of the whole text
exceeds the threshold in it, so ``column_share`` grows with the text; ``entry_share`` does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llmstudy.measure.footprint import DecoderLinear, decoder_linears
from llmstudy.measure.scoring import Protocol
from llmstudy.measure.session import Session, log
from llmstudy.measure.text import Excerpt, token_stream, windows


@dataclass(frozen=True)
class Settings(Excerpt):
    """The text, cut into disjoint windows (``bos`` has no effect on them), and the thresholds on magnitudes."""

    thresholds: tuple[float, ...]
    corpus: str
    protocol: Protocol
    bos: bool | None


def measure(session: Session) -> dict:
    """Return ``{"tokens", "linears": [{"layer", "linear", "columns", "max_abs", "thresholds": [{"threshold",
    "column_share", "row_share", "entry_share"}]}]}``; shares are fractions, of columns, of tokens and of all values."""
    settings = session.settings_as(Settings)
    model, _ = session.load_model()
    stream = token_stream(session, settings.corpus, settings)
    ids = torch.from_numpy(stream.ids).to(session.device)
    width = settings.protocol.window
    counts = [OutlierCount(linear, settings.thresholds) for linear in decoder_linears(model)]
    try:
        for window in windows(len(ids), width, width):
            with torch.no_grad(), session.attention_forced():
                model(ids[None, window.begin : window.end], use_cache=False, logits_to_keep=1)
    finally:
        for count in counts:
            count.hook.remove()
    log(f"{len(counts)} linear layers, {len(ids) - 1} tokens")
    return {"tokens": len(ids) - 1, "linears": [count.entry() for count in counts]}


class OutlierCount:
    """Counts over the inputs of one linear layer, collected by a hook."""

    def __init__(self, linear: DecoderLinear, thresholds: tuple[float, ...]):
        self.linear = linear
        self.rows = 0
        self.peaks: torch.Tensor | None = None  # float32 [columns]
        self.outlier_rows = dict.fromkeys(thresholds, 0)
        self.outlier_entries = dict.fromkeys(thresholds, 0)
        self.hook = linear.module.register_forward_pre_hook(lambda module, inputs: self.add(inputs[0]))

    def add(self, x: torch.Tensor) -> None:
        """Count one input [..., columns]."""
        magnitude = x.detach().flatten(0, -2).abs()
        peaks = magnitude.amax(dim=0).float()
        self.peaks = peaks if self.peaks is None else self.peaks.maximum(peaks)
        self.rows += len(magnitude)
        for threshold in self.outlier_rows:
            over = magnitude >= threshold  # the comparison of bitsandbytes
            self.outlier_rows[threshold] += int(over.any(dim=1).sum())
            self.outlier_entries[threshold] += int(over.sum())

    def entry(self) -> dict:
        """Return the linear layer's part of the record."""
        columns = len(self.peaks)
        return {
            "layer": self.linear.layer,
            "linear": self.linear.name,
            "columns": columns,
            "max_abs": float(self.peaks.max()),
            "thresholds": [
                {
                    "threshold": threshold,
                    "column_share": float((self.peaks >= threshold).float().mean()),
                    "row_share": self.outlier_rows[threshold] / self.rows,
                    "entry_share": self.outlier_entries[threshold] / (self.rows * columns),
                }
                for threshold in self.outlier_rows
            ],
        }
