"""LLM.int8()'s outlier ledger: which inputs of each linear carry activations over a threshold.

Dettmers et al. 2022 (arXiv:2208.07339), section 3: an input column (feature) with a magnitude over the threshold in any
token is an outlier column, and the product with it stays in 16 bit. A column counts here as soon as one token of the
whole text touches it, so its share grows with the text; ``entry_share`` does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmstudy.measure.linears import DecoderLinear, decoder_linears
from llmstudy.measure.session import Session, log
from llmstudy.measure.stream import token_stream, windows

if TYPE_CHECKING:
    import torch


def measure(session: Session) -> dict:
    """``{"tokens", "linears": [{"layer", "linear", "columns", "max_abs", "thresholds": [{"threshold", "column_share",
    "row_share", "entry_share"}]}]}``; shares are fractions."""
    import torch

    model, _ = session.load_model()
    stream = token_stream(session, session.settings["corpus"])
    ids = torch.from_numpy(stream.ids).to(session.device)
    width = session.settings["protocol"]["window"]
    ledgers = [Ledger(linear, session.settings["thresholds"]) for linear in decoder_linears(model)]
    try:
        for window in windows(len(ids), width, width):
            with torch.no_grad(), session.attention_forced():
                model(ids[None, window.begin : window.end], use_cache=False, logits_to_keep=1)
    finally:
        for ledger in ledgers:
            ledger.hook.remove()
    log(f"{len(ledgers)} linears, {len(ids) - 1} tokens")
    return {"tokens": len(ids) - 1, "linears": [ledger.entry() for ledger in ledgers]}


class Ledger:
    """Counts over the inputs of one linear, as they pass."""

    def __init__(self, linear: DecoderLinear, thresholds: list[float]):
        self.linear = linear
        self.rows = 0
        self.peaks: torch.Tensor | None = None  # float32 [columns]
        self.touched = dict.fromkeys(thresholds, 0)
        self.entries = dict.fromkeys(thresholds, 0)
        self.hook = linear.module.register_forward_pre_hook(lambda module, inputs: self.add(inputs[0]))

    def add(self, x: torch.Tensor) -> None:
        """Note one input [..., columns]."""
        magnitude = x.detach().flatten(0, -2).abs()
        peaks = magnitude.amax(dim=0).float()
        self.peaks = peaks if self.peaks is None else self.peaks.maximum(peaks)
        self.rows += len(magnitude)
        for threshold in self.touched:
            over = magnitude >= threshold  # bitsandbytes compares so
            self.touched[threshold] += int(over.any(dim=1).sum())
            self.entries[threshold] += int(over.sum())

    def entry(self) -> dict:
        """The linear's part of the record."""
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
                    "row_share": self.touched[threshold] / self.rows,
                    "entry_share": self.entries[threshold] / (self.rows * columns),
                }
                for threshold in self.touched
            ],
        }
