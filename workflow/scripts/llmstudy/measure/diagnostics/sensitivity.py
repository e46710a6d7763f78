"""Sensitivity to rounding: the model in fp32 with one part of its weights rounded to int8 at a time.

The rounding is simulated: weights become ``q * scale`` (int8 by the largest magnitude of each output channel, as
``int8-fused`` stores them), and activations stay as they are, so the loss is that of the weights alone. It is measured
in fp32 whatever the study's reference is: in 16 bits any change moves every rounding behind it, so that a part would
show how many layers follow it.

Two figures: the change of the NLL, which may have either sign and needs much text to stand out of its noise, and the KL
divergence from the unrounded model, which ranks parts with little text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from llmstudy.errors import Unsupported
from llmstudy.kernels.quantize import dequantize, quantize
from llmstudy.measure.footprint import DecoderLinear, decoder_linears
from llmstudy.measure.reference import divergence
from llmstudy.measure.scoring import Protocol, score, true_token
from llmstudy.measure.session import Session, log
from llmstudy.measure.text import Excerpt, TokenStream, beginning_of, token_stream
from llmstudy.stats.quality import bootstrap_mean, document_blocks, paired_difference


@dataclass(frozen=True)
class Settings(Excerpt):
    """The text, how it is scored, and whether each linear layer of each decoder layer is rounded alone as well."""

    single_linears: bool
    corpus: str
    protocol: Protocol
    bos: bool | None


@dataclass(frozen=True)
class Part:
    """The weights that are rounded together; ``layer`` None is every layer, ``linear`` None every linear layer."""

    layer: int | None
    linear: str | None

    def contains(self, linear: DecoderLinear) -> bool:
        """Return whether a linear layer belongs to the part."""
        return self.layer in (None, linear.layer) and self.linear in (None, linear.name)


def measure(session: Session) -> dict:
    """Return ``{"tokens", "nll", "blocks", "parts": [{"layer", "linear", "delta_nll", "se", "low", "high", "kl",
    "kl_se"}]}``.

    ``delta_nll`` is in nats per token against the unrounded model, paired by token; ``kl`` in nats, mean per token;
    errors and the 95 % interval are over documents, null where the text is too short for one.
    """
    settings = session.settings_as(Settings)
    model, _ = session.load_model()
    linears = list(decoder_linears(model))
    stream = token_stream(session, settings.corpus, settings)
    document = stream.document[1:]
    blocks = document_blocks(document)
    size = len(document) * session.weights.config().vocab_size * 4
    log(f"the unrounded model's log-probabilities take {size / 2**30:.2f} GiB of memory on {session.device}")
    exact = list(scored(session, model, stream, settings))
    nll = np.concatenate([losses for losses, _ in exact])
    results: dict = {"tokens": len(nll), "nll": float(nll.mean()), "blocks": blocks.label, "parts": []}
    for part in parts(linears, settings.single_linears):
        with rounded(linear for linear in linears if part.contains(linear)):
            changed, kl = against(exact, scored(session, model, stream, settings))
        loss, distance = paired_difference(nll, changed, document), bootstrap_mean(kl, blocks)
        numbers = {"delta_nll": loss.value, "se": loss.se, "low": loss.low, "high": loss.high}
        numbers |= {"kl": distance.value, "kl_se": distance.se}
        finite = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
        results["parts"].append({"layer": part.layer, "linear": part.linear} | finite)
        session.save(results)
        log(f"layer {part.layer}, linear {part.linear}: {loss.value:+.5f}, KL {distance.value:.5f} nats per token")
    return results


def scored(
    session: Session, model, stream: TokenStream, settings: Settings
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Yield (NLL [rows], log-probabilities fp32 [rows, vocabulary] on the device) of the text in order."""
    bos = beginning_of(session, settings.bos).id
    for _, log_probabilities, targets in score(session, model, stream, settings.protocol, bos):
        yield -true_token(log_probabilities, targets).cpu().numpy(), log_probabilities


def against(
    exact: Iterable[tuple[np.ndarray, torch.Tensor]], changed: Iterable[tuple[np.ndarray, torch.Tensor]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return (NLL [tokens] of ``changed``, KL divergence [tokens] of it from ``exact``), nats."""
    losses, divergences = [], []
    for (_, p), (nll, q) in zip(exact, changed, strict=True):
        losses.append(nll)
        divergences.append(divergence(p, q).cpu().numpy())
    return np.concatenate(losses), np.concatenate(divergences)


def parts(linears: list[DecoderLinear], single: bool) -> Iterator[Part]:
    """Yield all linear layers, each decoder layer, each kind of linear layer, and with ``single`` each one alone."""
    yield Part(None, None)
    yield from (Part(layer, None) for layer in dict.fromkeys(linear.layer for linear in linears))
    yield from (Part(None, name) for name in dict.fromkeys(linear.name for linear in linears))
    if single:
        yield from (Part(linear.layer, linear.name) for linear in linears)


@contextmanager
def rounded(linears: Iterable[DecoderLinear]) -> Iterator[None]:
    """Round the weights of the linear layers to int8 within this context, and restore them bit by bit afterwards. Raise
    Unsupported if a linear layer has no floating-point weight."""
    originals = []
    try:
        for linear in linears:
            weight = getattr(linear.module, "weight", None)
            if weight is None or not weight.is_floating_point():
                raise Unsupported(f"sensitivity: {linear.name} of layer {linear.layer} is quantized already")
            weight = weight.data
            originals.append((weight, weight.clone()))
            weight.copy_(dequantize(quantize(weight), weight.dtype))
        yield
    finally:
        for weight, original in originals:
            weight.copy_(original)
