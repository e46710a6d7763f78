"""4-bit weights of bitsandbytes: NF4 (Dettmers et al. 2023, arXiv:2305.14314) and FP4; activations in bf16."""

from __future__ import annotations

from functools import partial

from llmstudy.models import loading
from llmstudy.models.precisions.base import LoadRequest, Precision


def load(request: LoadRequest, quant_type: str):
    """Return a model whose decoder linears are ``bitsandbytes.nn.Linear4bit``: blocks of 64 weights, fp32 absmax."""
    import torch
    from transformers import BitsAndBytesConfig

    if request.weights.real:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=quant_type, bnb_4bit_compute_dtype=torch.bfloat16
        )
        return loading.from_library(request, torch.bfloat16, quantization_config=quantization)
    return loading.layer_by_layer(request, torch.bfloat16, partial(make_linear, quant_type=quant_type))


def make_linear(weight, bias, quant_type: str):
    """Return the ``Linear4bit`` of a 16-bit weight [out, in] and a bias [out] or None, on the weight's device."""
    import bitsandbytes
    import torch
    from torch import nn

    out_features, in_features = weight.shape
    with torch.device("meta"):
        linear = bitsandbytes.nn.Linear4bit(
            in_features,
            out_features,
            bias=bias is not None,
            compute_dtype=weight.dtype,
            compress_statistics=False,
            quant_type=quant_type,
        )
    # Moving an unquantized Params4bit quantizes it, on whatever device it was.
    linear.weight = bitsandbytes.nn.Params4bit(
        weight, requires_grad=False, compress_statistics=False, quant_type=quant_type, module=linear
    )
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear.to(weight.device)


PRECISIONS = {
    name: Precision(
        name=name,
        title=f"bitsandbytes 4-bit {name.upper()}, blocks of 64",
        family="4-bit",
        weight_bits=4.5,  # 4 bits and one fp32 absmax per block of 64
        compute_dtype="bfloat16",
        load=partial(load, quant_type=name),
        color=color,
        how=f'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="{name}", '
        "bnb_4bit_compute_dtype=torch.bfloat16)",
        packages=("bitsandbytes",),
    )
    for name, color in [("nf4", "#9a2fb5"), ("fp4", "#c2185b")]
}
