"""8-bit precisions of this project: int8 weights with one absmax scale per output channel, everything else in bf16.

``int8-fused``          activations in 16 bits, sums in float32.
``int8-fused-outlier``  the same, with the input columns that carry outlier activations kept in 16 bits.
``int8-w8a8``           activations in int8, one scale per token, for more than 16 rows (prefill, large batches).

Weights are quantized as they arrive, layer by layer, so loading never holds more than the int8 model and one layer.

LLM.int8() (arXiv:2208.07339) searches columns with a magnitude over 6.0 in every call, which synchronizes with the host
and makes the result of a row depend on its neighbors. ``int8-fused-outlier`` chooses them once, from calibration text:
load int8-fused, run the text through it, and replace each linear layer that has such columns. The activations of the
int8 model stand in for those of the 16-bit model, whose magnitudes they match within a percent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmstudy.errors import Unsupported
from llmstudy.models import loading
from llmstudy.models.precisions.base import LoadRequest, Precision

if TYPE_CHECKING:
    import torch

THRESHOLD = 6.0


def load_fused(request: LoadRequest):
    """Return a model whose decoder linears are ``Int8Linear``."""
    import torch

    from llmstudy.kernels.linear import Int8Linear

    return loading.layer_by_layer(request, torch.bfloat16, Int8Linear.from_weight)


def load_w8a8(request: LoadRequest):
    """Return a model whose decoder linears are ``W8A8Linear``."""
    import torch

    from llmstudy.kernels.linear import W8A8Linear

    return loading.layer_by_layer(request, torch.bfloat16, W8A8Linear.from_weight)


def load_outlier(request: LoadRequest):
    """Return a model whose decoder linears are ``Int8Linear`` with fixed outlier columns.

    Raises:
        Unsupported: there is no calibration text.
    """
    import torch

    from llmstudy.kernels.linear import Int8Linear

    if request.calibration_ids is None:
        raise Unsupported("int8-fused-outlier chooses columns by activations: it needs calibration text")
    model = load_fused(request)
    columns = find_outlier_columns(model, request.calibration_ids[:1].to(request.device), THRESHOLD)
    with torch.no_grad():
        for path, outliers in columns.items():
            if outliers.numel():
                plain = model.get_submodule(path)
                shape = (plain.out_features, plain.in_features)
                weight = request.weights.tensor(f"{path}.weight", shape, torch.bfloat16, request.device)
                model.set_submodule(path, Int8Linear.from_weight(weight, plain.bias, outliers))
    return model


def find_outlier_columns(model, ids: torch.Tensor, threshold: float) -> dict[str, torch.Tensor]:
    """Return, per path of an ``Int8Linear``, the input columns with a magnitude over ``threshold`` for some token.

    Args:
        model: a model with ``Int8Linear`` layers.
        ids: int64 [1, n] token ids on the model's device.
        threshold: the magnitude.

    Returns:
        int64 [c] for each path, ascending, possibly empty.
    """
    import torch

    from llmstudy.kernels.linear import Int8Linear

    layers = {path: module for path, module in model.named_modules() if isinstance(module, Int8Linear)}
    peaks: dict[Int8Linear, torch.Tensor] = {}

    def keep_peaks(module, inputs):
        peaks[module] = inputs[0].detach().flatten(0, -2).abs().amax(dim=0)

    handles = [module.register_forward_pre_hook(keep_peaks) for module in layers.values()]
    try:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    return {path: (peaks[module] > threshold).nonzero().flatten() for path, module in layers.items()}


PRECISIONS = {
    name: Precision(
        name=name,
        title=title,
        family="int8",
        weight_bits=8,
        compute_dtype="bfloat16",
        load=load,
        color=color,
        how="this project's kernels; not in a library yet",
        own=True,
        calibrated=load is load_outlier,
    )
    for name, title, load, color in [
        ("int8-fused", "int8 weights per output channel, 16-bit activations, fused kernels", load_fused, "#007a55"),
        (
            "int8-fused-outlier",
            f"int8-fused with static outlier columns (magnitude over {THRESHOLD}) in 16 bit",
            load_outlier,
            "#56780c",
        ),
        (
            "int8-w8a8",
            "int8 weights and dynamic int8 activations in prefill and large batches",
            load_w8a8,
            "#0a7187",
        ),
    ]
}
