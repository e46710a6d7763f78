"""``int8-fused-outlier``: int8-fused with the input columns that carry outlier activations kept in 16 bit.

LLM.int8() (arXiv:2208.07339) looks for columns with a magnitude over 6.0 in every call, which synchronises with the
host and makes a row's result depend on its neighbours. Here the columns are fixed once, from calibration text: load in
plain int8, run the text through that model, and load again with the columns known. The second load replaces one linear
at a time, so the peak stays at the int8 model and one layer; activations of the int8 model stand in for those of the
16-bit one, whose magnitudes they match within a per cent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmstudy.errors import Unsupported
from llmstudy.models.precisions import int8_fused
from llmstudy.models.precisions.base import LoadRequest, Precision

if TYPE_CHECKING:
    import torch

THRESHOLD = 6.0


def load(request: LoadRequest):
    """A model whose decoder linears are ``Int8Linear`` with static outlier columns; everything else in bf16."""
    import torch

    if request.calibration_ids is None:
        raise Unsupported("int8-fused-outlier looks at activations: it needs calibration text, and none was given")
    model = int8_fused.load(request)
    columns = find_outlier_columns(model, request.calibration_ids.to(request.device), THRESHOLD)
    dtype = torch.bfloat16
    with torch.no_grad():
        for path, found in columns.items():
            if found.numel():
                plain = model.get_submodule(path)
                shape = (plain.out_features, plain.in_features)
                weight = request.weights.tensor(f"{path}.weight", shape, dtype, request.device)
                model.set_submodule(path, make_linear(weight, plain.bias, path, found))
    return model


def find_outlier_columns(model, ids: torch.Tensor, threshold: float) -> dict[str, torch.Tensor]:
    """Module path → int64 [c]: input columns of each int8 linear whose magnitude exceeds ``threshold`` for some token.

    ids int64 [1, n] on the model's device.
    """
    import torch

    from llmstudy.kernels.linear import Int8Linear

    peaks: dict[str, torch.Tensor] = {}

    def watch(path: str):
        def hook(module, inputs):
            peaks[path] = inputs[0].detach().flatten(0, -2).abs().amax(dim=0)

        return hook

    handles = [
        module.register_forward_pre_hook(watch(path))
        for path, module in model.named_modules()
        if isinstance(module, Int8Linear)
    ]
    try:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    return {path: (peak > threshold).nonzero().flatten() for path, peak in peaks.items()}


def make_linear(weight, bias, name: str, outlier_columns):
    """One ``Int8Linear`` from a weight [out, in] and the columns int64 [c] that stay as they are."""
    from llmstudy.kernels.linear import Int8Linear

    return Int8Linear.from_weight(weight, bias, outlier_columns)


PRECISIONS = {
    "int8-fused-outlier": Precision(
        name="int8-fused-outlier",
        title=f"int8-fused with static outlier columns (magnitude over {THRESHOLD}) in 16 bit",
        weight_bits=8,
        compute_dtype="bfloat16",
        load=load,
        calibrated=True,
    )
}
