"""Int4 weights of this project in groups of 128 inputs with a bf16 scale; activations and all else in bf16.

``int4-fused``      rounded by GPTQ (``models/gptq.py``) for the study's calibration text; random weights to nearest.
``int4-fused-rtn``  rounded to the nearest level: what calibration buys is the difference.

GPTQ loads the 16-bit model first and replaces it layer by layer.
"""

from __future__ import annotations

from llmstudy.errors import Unsupported
from llmstudy.models import loading
from llmstudy.models.precisions.base import LoadRequest, Precision


def load_nearest(request: LoadRequest):
    """Return a model whose decoder linears are ``Int4Linear``; raise ``Unsupported`` if no group divides a layer."""
    import torch

    from llmstudy.kernels.linear import Int4Linear

    return loading.layer_by_layer(request, torch.bfloat16, Int4Linear.from_weight)


def load_calibrated(request: LoadRequest):
    """Return the model of ``load_nearest`` with weights rounded by GPTQ; also ``Unsupported`` without calibration
    text, or where the decoder has no list of layers."""
    import torch

    from llmstudy.models.gptq import quantize_decoder

    if not request.weights.real:
        return load_nearest(request)
    if request.calibration_ids is None:
        raise Unsupported("int4-fused rounds for the outputs of each layer: it needs calibration text")
    model = loading.from_library(request, torch.bfloat16)
    quantize_decoder(model, request.calibration_ids)
    return model


PRECISIONS = {
    name: Precision(
        name=name,
        title=f"int4 weights in groups of 128 with bf16 scales, {rounded}; emulated on a CPU",
        family="4-bit",
        weight_bits=4.125,  # 4 bits and one bf16 scale per group of 128
        compute_dtype="bfloat16",
        load=load,
        color=color,
        how="this project's kernels; not in a library yet",
        own=True,
        calibrated=load is load_calibrated,
    )
    for name, rounded, load, color in [
        ("int4-fused", "rounded by GPTQ", load_calibrated, "#7b1fa2"),
        ("int4-fused-rtn", "rounded to nearest", load_nearest, "#a1476f"),
    ]
}
