"""LLM.int8() of bitsandbytes (Dettmers et al. 2022, arXiv:2208.07339).

``llm-int8`` keeps activation columns with a magnitude over 6.0 in 16 bit (mixed decomposition);
``llm-int8-t0`` sets the threshold to 0, which switches the decomposition off.
"""

from __future__ import annotations

import logging
from functools import partial

from llmstudy.models import loading
from llmstudy.models.precisions.base import LoadRequest, Precision


def load(request: LoadRequest, threshold: float):
    """A model whose decoder linears are ``bitsandbytes.nn.Linear8bitLt``; activations in bf16."""
    import torch
    from transformers import BitsAndBytesConfig

    silence_bitsandbytes()
    dtype = torch.bfloat16
    if request.weights.real:
        quantization = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=threshold)
        return loading.from_library(request, dtype, quantization_config=quantization)
    return loading.layer_by_layer(request, dtype, partial(make_linear, threshold=threshold))


def make_linear(weight, bias, name: str, threshold: float):
    """One ``Linear8bitLt`` from a 16-bit weight [out, in]; quantised on the weight's device."""
    import bitsandbytes
    import torch
    from torch import nn

    out_features, in_features = weight.shape
    with torch.device("meta"):
        linear = bitsandbytes.nn.Linear8bitLt(
            in_features, out_features, bias=bias is not None, has_fp16_weights=False, threshold=threshold
        )
    # Int8Params quantises itself only on its way from the CPU; this spares a GPU the way there and back.
    quantised, scales, _ = bitsandbytes.functional.int8_vectorwise_quant(weight.to(torch.float16))
    linear.weight = bitsandbytes.nn.Int8Params(
        quantised, requires_grad=False, has_fp16_weights=False, CB=quantised, SCB=scales
    )
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear.to(weight.device)


def silence_bitsandbytes() -> None:
    """bitsandbytes warns once per call that it casts to fp16: one run printed 22 470 lines."""
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def with_threshold(name: str, threshold: float) -> Precision:
    """LLM.int8() at an outlier threshold; 0 switches the decomposition off."""
    return Precision(
        name=name,
        title=f"bitsandbytes LLM.int8(), outlier threshold {threshold}",
        weight_bits=8,
        compute_dtype="bfloat16",
        load=partial(load, threshold=threshold),
        packages=("bitsandbytes",),
    )


PRECISIONS = {"llm-int8": with_threshold("llm-int8", 6.0), "llm-int8-t0": with_threshold("llm-int8-t0", 0.0)}
