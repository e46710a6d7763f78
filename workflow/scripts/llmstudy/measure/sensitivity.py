"""Which linears lose most in int8: the reference model with one part of its weights rounded at a time.

The rounding is simulated: weights become ``q * scale`` (per-output-channel absmax int8, as ``int8-fused`` stores them)
in the reference's own dtype, and activations stay as they are, so the loss is that of the weights alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from llmstudy.errors import Unsupported
from llmstudy.measure.linears import DecoderLinear, decoder_linears
from llmstudy.measure.quality import measure_protocol
from llmstudy.measure.session import Session, log
from llmstudy.measure.stream import token_stream
from llmstudy.precisions.int8.quantize import dequantize, quantize
from llmstudy.statistics.paired import compare_nll


@dataclass(frozen=True)
class Part:
    """What is rounded together; ``layer`` None means every layer, ``linear`` None every linear."""

    layer: int | None
    linear: str | None

    def holds(self, linear: DecoderLinear) -> bool:
        return self.layer in (None, linear.layer) and self.linear in (None, linear.name)


def measure(session: Session) -> dict:
    """``{"tokens", "nll", "blocks", "parts": [{"layer", "linear", "delta_nll", "se", "low", "high"}]}``.

    ``delta_nll`` in nats per token against the model as it is, paired by token; ``se`` and the 95 % interval over
    documents, null where the text is too short for one.
    """
    model, _ = session.load_model()
    linears = list(decoder_linears(model))
    stream = token_stream(session, session.settings["corpus"])

    def nll():
        return measure_protocol(session, model, stream, session.settings["protocol"], None)["nll"]

    reference, document = nll(), stream.document[1:]
    samples = {"tokens": len(reference), "nll": float(reference.mean()), "parts": []}
    for part in parts(linears, session.settings["single_linears"]):
        with rounded(linear for linear in linears if part.holds(linear)):
            paired = compare_nll(reference, nll(), document)
        delta = paired.delta_nll
        samples["blocks"] = paired.blocks
        numbers = {"delta_nll": delta.value, "se": delta.se, "low": delta.low, "high": delta.high}
        finite = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
        samples["parts"].append({"layer": part.layer, "linear": part.linear} | finite)
        session.save(samples)
        log(f"layer {part.layer}, linear {part.linear}: {delta.value:+.5f} nats per token")
    return samples


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
