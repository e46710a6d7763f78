"""GPTQ (Frantar et al. 2022, arXiv:2210.17323): round weights to int4 so that the outputs of a layer change least.

For each row w of a linear layer the error of its outputs over calibration inputs X is (w - ŵ) H (w - ŵ)ᵀ with H = X Xᵀ.
Columns are rounded in order, and what one loses is made up by those that are not rounded yet, in the way that is best
for this error (their equation 2, with the Cholesky factor of H⁻¹ of their section 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from llmstudy.errors import Unsupported
from llmstudy.kernels.linear import Int4Linear
from llmstudy.kernels.quantize import QuantizedWeight, group_of, group_scale, int4_levels, pack

DAMPING = 0.01  # of the mean of H's diagonal, added to it: their section 3, step 3


def gptq(weight: torch.Tensor, hessian: torch.Tensor) -> QuantizedWeight:
    """Return a weight [out, in] in int4, rounded for inputs with ``hessian`` X Xᵀ, float32 [in, in].

    The scale of a group is that of its weights when its first column's turn comes.
    """
    left = weight.float().clone()
    hessian = hessian.clone()
    diagonal = hessian.diagonal()
    unused = diagonal == 0  # inputs that are always 0: any weight will do
    diagonal[unused] = 1
    left[:, unused] = 0
    diagonal += DAMPING * diagonal.mean()
    # Row i of the factor: how the columns after i make up for an error of 1 in column i, times its diagonal.
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    group = group_of(weight.shape[1])
    levels = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales = []
    for first in range(0, weight.shape[1], group):
        columns = slice(first, first + group)
        block, own = left[:, columns], factor[columns, columns]
        scales.append(group_scale(block))
        scale = scales[-1][:, None]
        errors = torch.empty_like(block)
        for column in range(group):
            exact = block[:, column, None]
            level = int4_levels(exact, scale)
            levels[:, first + column] = level[:, 0]
            errors[:, column] = (exact - level * scale.float())[:, 0] / own[column, column]
            block[:, column:] -= errors[:, column, None] * own[column, column:]
        left[:, first + group :] -= errors @ factor[columns, first + group :]
    return QuantizedWeight(pack(levels), torch.stack(scales, dim=1))


@torch.no_grad()
def quantize_decoder(model: nn.Module, ids: torch.Tensor) -> None:
    """Replace the linear layers of a dense model's decoder by ``Int4Linear``, layer after layer, in place.

    Each layer is calibrated with what the layers before it give once they are rounded.

    Args:
        model: a causal LM of transformers, on one device.
        ids: int64 [sequences, tokens], calibration text.

    Raises:
        Unsupported: the decoder has no list of layers, or a layer has inputs that no group divides.
    """
    layers = getattr(model.get_decoder(), "layers", None)
    if layers is None:
        raise Unsupported(f"GPTQ calibrates decoder layers one after the other; {type(model).__name__} lists none")
    calls = [_first_call(model, layers[0], row[None]) for row in ids.to(model.device)]
    for layer in layers:
        linears = {path: module for path, module in layer.named_modules() if isinstance(module, nn.Linear)}
        with _hessians(linears) as hessians:
            for hidden, options in calls:
                layer(hidden, **options)
        for path, linear in linears.items():
            bias = None if linear.bias is None else linear.bias.data
            layer.set_submodule(path, Int4Linear(gptq(linear.weight, hessians.pop(path)), bias))
        del linears, linear
        calls = [(_hidden(layer(hidden, **options)), options) for hidden, options in calls]


class _Reached(Exception):
    """The first layer is reached: nothing after it needs to run."""


def _first_call(model: nn.Module, layer: nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, dict]:
    """Return the hidden states and the other arguments that a decoder layer is called with for ``ids``."""
    reached = []

    def keep(module, arguments, options):
        reached.append((arguments[0], options))
        raise _Reached

    handle = layer.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        model(input_ids=ids, use_cache=False)
    except _Reached:
        pass
    finally:
        handle.remove()
    return reached[0]


@contextmanager
def _hessians(linears: dict[str, nn.Module]) -> Iterator[dict[str, torch.Tensor]]:
    """Yield X Xᵀ of the inputs that each layer gets within this context, float32 [in, in]. Layers that are called with
    one tensor after each other, as q, k, v are, share theirs."""
    sums: dict[str, torch.Tensor] = {}
    inputs, owner = None, ""

    def add(path: str):
        def hook(module, arguments):
            nonlocal inputs, owner
            if arguments[0] is inputs:
                sums[path] = sums[owner]
                return
            inputs, owner = arguments[0], path
            rows = inputs.flatten(0, -2).float()
            sums[path] = torch.addmm(sums[path], rows.T, rows) if path in sums else rows.T @ rows

        return hook

    handles = [module.register_forward_pre_hook(add(path)) for path, module in linears.items()]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def _hidden(output) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output
