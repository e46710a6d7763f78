"""Which linears lose most in int8: the reference model with one part of its weights rounded at a time.

The rounding is simulated: weights become ``q * scale`` (per-output-channel absmax int8, as ``int8-fused`` stores them)
in the reference's own dtype, and activations stay as they are, so the loss is that of the weights alone.

Two figures: the change of the NLL, which may have either sign and needs much text to stand out of its noise, and the KL
divergence from the unrounded model, which ranks parts with little text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmstudy.errors import Unsupported
from llmstudy.kernels.quantize import dequantize, quantize
from llmstudy.measure.linears import DecoderLinear, decoder_linears
from llmstudy.measure.scoring import score, true_token
from llmstudy.measure.session import Session, log
from llmstudy.measure.stream import TokenStream, token_stream
from llmstudy.stats.bootstrap import bootstrap_mean, document_blocks
from llmstudy.stats.quality import paired_difference

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Part:
    """What is rounded together; ``layer`` None means every layer, ``linear`` None every linear."""

    layer: int | None
    linear: str | None

    def holds(self, linear: DecoderLinear) -> bool:
        return self.layer in (None, linear.layer) and self.linear in (None, linear.name)


def measure(session: Session) -> dict:
    """``{"tokens", "nll", "blocks", "parts": [{"layer", "linear", "delta_nll", "se", "low", "high", "kl", "kl_se"}]}``.

    ``delta_nll`` in nats per token against the model as it is, paired by token; ``kl`` in nats, mean per token; errors
    and the 95 % interval are over documents, null where the text is too short for one.
    """
    model, _ = session.load_model()
    linears = list(decoder_linears(model))
    stream = token_stream(session, session.settings["corpus"])
    document = stream.document[1:]
    size = len(document) * session.weights.config().vocab_size * 4
    log(f"the unrounded model's log-probabilities take {size / 2**30:.2f} GiB of memory on {session.device}")
    exact = list(scored(session, model, stream))
    nll = np.concatenate([losses for losses, _ in exact])
    results = {"tokens": len(nll), "nll": float(nll.mean()), "parts": []}
    for part in parts(linears, session.settings["single_linears"]):
        with rounded(linear for linear in linears if part.holds(linear)):
            changed, kl = against(exact, scored(session, model, stream))
        blocks = document_blocks(document)
        delta, divergence = paired_difference(nll, changed, document), bootstrap_mean(kl, blocks)
        results["blocks"] = blocks.label
        numbers = {"delta_nll": delta.value, "se": delta.se, "low": delta.low, "high": delta.high}
        numbers |= {"kl": divergence.value, "kl_se": divergence.se}
        finite = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
        results["parts"].append({"layer": part.layer, "linear": part.linear} | finite)
        session.save(results)
        log(f"layer {part.layer}, linear {part.linear}: {delta.value:+.5f}, KL {divergence.value:.5f} nats per token")
    return results


def scored(session: Session, model, stream: TokenStream) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """(NLL [rows], log-probabilities fp32 [rows, vocabulary] on the device) of the text, piece by piece in order."""
    settings = session.settings
    for _, log_probabilities, targets in score(session, model, stream, settings["protocol"], settings["bos"]):
        yield -true_token(log_probabilities, targets).cpu().numpy(), log_probabilities


def against(
    exact: Iterable[tuple[np.ndarray, torch.Tensor]], changed: Iterable[tuple[np.ndarray, torch.Tensor]]
) -> tuple[np.ndarray, np.ndarray]:
    """(NLL [tokens] of ``changed``, KL divergence [tokens] of it from ``exact``), nats."""
    losses, divergences = [], []
    for (_, p), (nll, q) in zip(exact, changed, strict=True):
        losses.append(nll)
        divergences.append((p.exp() * (p - q)).sum(-1).cpu().numpy())
    return np.concatenate(losses), np.concatenate(divergences)


def parts(linears: list[DecoderLinear], single: bool) -> Iterator[Part]:
    """All linears, each layer, each kind of linear, and with ``single`` each linear of each layer."""
    layers = list(dict.fromkeys(linear.layer for linear in linears))
    names = list(dict.fromkeys(linear.name for linear in linears))
    yield Part(None, None)
    yield from (Part(layer, None) for layer in layers)
    yield from (Part(None, name) for name in names)
    if single:
        yield from (Part(linear.layer, linear.name) for linear in linears)


@contextmanager
def rounded(linears: Iterable[DecoderLinear]) -> Iterator[None]:
    """Within this context the weights of the linears are rounded to int8; afterwards they are as before, bit by bit.

    Raises Unsupported if a linear has no floating-point weight.
    """
    kept = []
    try:
        for linear in linears:
            weight = getattr(linear.module, "weight", None)
            if weight is None or not weight.is_floating_point():
                raise Unsupported(f"sensitivity: {linear.name} of layer {linear.layer} is quantised already")
            weight = weight.data
            kept.append((weight, weight.clone()))
            weight.copy_(dequantize(quantize(weight), weight.dtype))
        yield
    finally:
        for weight, original in kept:
            weight.copy_(original)
