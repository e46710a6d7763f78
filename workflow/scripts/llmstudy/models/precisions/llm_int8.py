"""LLM.int8() of bitsandbytes (Dettmers et al. 2022, arXiv:2208.07339).

``llm-int8`` multiplies activation columns with a magnitude over 6.0 in 16 bits (mixed decomposition), as the paper
does; ``llm-int8-t<x>`` those over x. ``llm-int8-t0`` switches the decomposition off. ``llm-int8-tinf`` does not: it
compares every activation and never finds an outlier, so that the difference of the two is the cost of the search.
"""

from __future__ import annotations

import logging
import math
import re
from decimal import Decimal
from functools import partial

from llmstudy.errors import StudyError
from llmstudy.models import loading
from llmstudy.models.precisions.base import LoadRequest, Precision


def load(request: LoadRequest, threshold: float):
    """Return a model whose decoder linears are ``bitsandbytes.nn.Linear8bitLt``; activations in bf16."""
    import torch
    from transformers import BitsAndBytesConfig

    silence_bitsandbytes()
    dtype = torch.bfloat16
    if request.weights.real:
        quantization = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=threshold)
        return loading.from_library(request, dtype, quantization_config=quantization)
    return loading.layer_by_layer(request, dtype, partial(make_linear, threshold=threshold))


def make_linear(weight, bias, threshold: float):
    """Return the ``Linear8bitLt`` of a 16-bit weight [out, in] and a bias [out] or None, on the weight's device."""
    import bitsandbytes
    import torch
    from torch import nn

    out_features, in_features = weight.shape
    with torch.device("meta"):
        linear = bitsandbytes.nn.Linear8bitLt(
            in_features, out_features, bias=bias is not None, has_fp16_weights=False, threshold=threshold
        )
    # Int8Params quantizes only on the way from the CPU to another device; this spares a GPU the way there and back.
    quantized, scales, _ = bitsandbytes.functional.int8_vectorwise_quant(weight.to(torch.float16))
    linear.weight = bitsandbytes.nn.Int8Params(
        quantized, requires_grad=False, has_fp16_weights=False, CB=quantized, SCB=scales
    )
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear.to(weight.device)


def silence_bitsandbytes() -> None:
    """Silence a warning of bitsandbytes at every call (it casts to fp16): one run printed 22 470 lines."""
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def member(text: str) -> Precision:
    """Return ``llm-int8-t<text>``; ``text`` is a decimal number or ``inf`` in its shortest spelling.

    Raises:
        StudyError: it is neither, or there is a shorter spelling, so that no two names mean the same.
    """
    name = f"llm-int8-t{text}"
    if not re.fullmatch(r"\d+(\.\d+)?|inf", text, re.ASCII):
        raise StudyError(f"precision {name!r}: {text!r} is no outlier threshold; allowed: a number, or inf")
    threshold = float(text)
    shortest = "inf" if math.isinf(threshold) else format(Decimal(repr(threshold)).normalize(), "f")
    if text != shortest:
        raise StudyError(f"precision {name!r}: the name of this threshold is 'llm-int8-t{shortest}'")
    return with_threshold(name, threshold, _color(threshold))


def with_threshold(name: str, threshold: float, color: str) -> Precision:
    """Return LLM.int8() with an outlier threshold."""
    limit = 'float("inf")' if math.isinf(threshold) else threshold
    return Precision(
        name=name,
        title=f"bitsandbytes LLM.int8(), outlier threshold {threshold}",
        family="int8",
        weight_bits=8,
        compute_dtype="bfloat16",
        load=partial(load, threshold=threshold),
        color=color,
        how=f"BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold={limit})",
        packages=("bitsandbytes",),
        threshold=threshold,
    )


def _color(threshold: float) -> str:
    """From gold at 0 to brick red at infinity: green falls, and blue tells thresholds apart that share a green."""
    green, blue = divmod(round(86 * 48 * (1 - 6 / (threshold + 6))), 48)
    return f"#9a{98 - green:02x}{11 + blue:02x}"


PRECISIONS = {"llm-int8": with_threshold("llm-int8", 6.0, "#c2450a")}
