"""Dense precisions: the library's own linears in fp32, fp16 or bf16."""

from __future__ import annotations

from functools import partial

from llmstudy.models import loading
from llmstudy.models.precisions.base import LoadRequest, Precision


def load(request: LoadRequest, dtype_name: str):
    """A dense model in the given dtype."""
    import torch

    dtype = getattr(torch, dtype_name)
    if request.weights.real:
        return loading.from_library(request, dtype)
    return loading.layer_by_layer(request, dtype)


PRECISIONS = {
    name: Precision(
        name=name,
        title=f"{dtype} weights and activations",
        weight_bits=bits,
        compute_dtype=dtype,
        load=partial(load, dtype_name=dtype),
    )
    for name, dtype, bits in [("fp32", "float32", 32), ("fp16", "float16", 16), ("bf16", "bfloat16", 16)]
}
