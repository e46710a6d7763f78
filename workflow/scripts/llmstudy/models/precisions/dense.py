"""Dense precisions: the library's own linear layers in fp32, fp16 or bf16."""

from __future__ import annotations

from functools import partial

from llmstudy.models import loading
from llmstudy.models.precisions.base import LoadRequest, Precision


def load(request: LoadRequest, dtype_name: str):
    """Return a dense model in a dtype of torch, such as ``bfloat16``."""
    import torch

    dtype = getattr(torch, dtype_name)
    if request.weights.real:
        return loading.from_library(request, dtype)
    return loading.layer_by_layer(request, dtype)


PRECISIONS = {
    name: Precision(
        name=name,
        title=f"{dtype} weights and activations",
        family="dense",
        weight_bits=bits,
        compute_dtype=dtype,
        load=partial(load, dtype_name=dtype),
        color=color,
        how=f"AutoModelForCausalLM.from_pretrained(path, dtype=torch.{dtype})",
    )
    for name, dtype, bits, color in [
        ("fp32", "float32", 32, "#6b7280"),
        ("bf16", "bfloat16", 16, "#2563cf"),
        ("fp16", "float16", 16, "#14315f"),
    ]
}
