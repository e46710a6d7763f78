"""``int8-fused``: per-output-channel absmax int8 weights, 16-bit activations, sums in float32.

Weights are quantised as they arrive, layer by layer, so loading never holds more than the int8 model and one layer.
"""

from __future__ import annotations

from llmstudy.models import loading
from llmstudy.models.precisions.base import LoadRequest, Precision


def load(request: LoadRequest):
    """A model whose decoder linears are ``Int8Linear``; everything else in bf16."""
    import torch

    return loading.layer_by_layer(request, torch.bfloat16, make_linear)


def make_linear(weight, bias, name: str):
    """One ``Int8Linear`` from a weight [out, in]; quantised on the weight's device."""
    from llmstudy.kernels.linear import Int8Linear

    return Int8Linear.from_weight(weight, bias)


PRECISIONS = {
    "int8-fused": Precision(
        name="int8-fused",
        title="int8 weights per output channel, 16-bit activations, fused kernels",
        weight_bits=8,
        compute_dtype="bfloat16",
        load=load,
    )
}
