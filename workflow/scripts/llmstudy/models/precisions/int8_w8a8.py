"""``int8-w8a8``: int8 weights, and dynamic int8 activations, one scale per token, for more than 16 rows."""

from __future__ import annotations

from llmstudy.models import loading
from llmstudy.models.precisions.base import LoadRequest, Precision


def load(request: LoadRequest):
    """A model whose decoder linears are ``W8A8Linear``; everything else in bf16."""
    import torch

    return loading.layer_by_layer(request, torch.bfloat16, make_linear)


def make_linear(weight, bias, name: str):
    """One ``W8A8Linear`` from a weight [out, in]; quantised on the weight's device."""
    from llmstudy.kernels.linear import W8A8Linear

    return W8A8Linear.from_weight(weight, bias)


PRECISIONS = {
    "int8-w8a8": Precision(
        name="int8-w8a8",
        title="int8 weights and dynamic int8 activations in prefill and large batches",
        weight_bits=8,
        compute_dtype="bfloat16",
        load=load,
    )
}
