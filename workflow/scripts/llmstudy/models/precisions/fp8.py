"""FP8 of this project: e4m3 weights with an absmax scale per output channel (Micikevicius et al. 2022, 2209.05433).

``fp8``         activations in e4m3, one scale per token, for more than 16 rows (prefill, large batches).
``fp8-weight``  activations in 16 bits.

Embeddings, norms and the head stay in bf16. A CPU multiplies the same 8-bit numbers in float32, so that quality can be
judged anywhere; its speed says nothing about FP8.
"""

from __future__ import annotations

from functools import partial

from llmstudy.errors import Unsupported
from llmstudy.models import loading
from llmstudy.models.precisions.base import LoadRequest, Precision

CAPABILITY = (8, 9)  # of the first NVIDIA GPUs that have e4m3


def load(request: LoadRequest, kind: str):
    """Return a model whose decoder linears are of a class in ``kernels.linear``.

    Raises:
        Unsupported: the GPU does not have e4m3.
    """
    import torch

    from llmstudy.kernels import linear

    if request.device == "cuda" and (found := torch.cuda.get_device_capability()) < CAPABILITY:
        raise Unsupported(
            f"fp8 needs a GPU of compute capability {CAPABILITY[0]}.{CAPABILITY[1]} (Ada, Hopper) or later; "
            f"this one has {found[0]}.{found[1]}"
        )
    return loading.layer_by_layer(request, torch.bfloat16, getattr(linear, kind).from_weight)


PRECISIONS = {
    name: Precision(
        name=name,
        title=f"e4m3 weights per output channel, {activations}; emulated on a CPU",
        family="fp8",
        weight_bits=8,
        compute_dtype="bfloat16",
        load=partial(load, kind=kind),
        color=color,
        how="this project's kernels; not in a library yet",
        own=True,
    )
    for name, activations, kind, color in [
        ("fp8", "dynamic e4m3 activations in prefill and large batches", "Fp8Linear", "#b3261e"),
        ("fp8-weight", "16-bit activations", "Fp8WeightLinear", "#8c4a2f"),
    ]
}
