"""A precision as a reader would add it, one file: int8 weights as a tensor subclass, the way torchao's are.

``nn.Linear`` stays; its weight has no memory, but two tensors inside that ``__tensor_flatten__`` names.
"""

import torch
from llmstudy.models import loading
from llmstudy.models.precisions import Precision
from torch import nn
from torch.utils._pytree import tree_map_only


class Int8Tensor(torch.Tensor):
    """q int8 [out, in] times scale [out, 1] in the dtype of the scale."""

    @staticmethod
    def __new__(cls, q, scale):
        return torch.Tensor._make_wrapper_subclass(cls, q.shape, dtype=scale.dtype, device=q.device)

    def __init__(self, q, scale):
        self.q, self.scale = q, scale

    def __tensor_flatten__(self):
        return ["q", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, inner, meta, outer_size, outer_stride):
        return cls(inner["q"], inner["scale"])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].q, args[0].scale)
        dense = tree_map_only(cls, lambda tensor: tensor.q * tensor.scale, (args, kwargs or {}))
        return func(*dense[0], **dense[1])


def make_linear(weight, bias):
    """Return an ``nn.Linear`` with an ``Int8Tensor`` for its weight."""
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    tensor = Int8Tensor((weight / scale).round().to(torch.int8), scale)
    linear.weight = nn.Parameter(tensor, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


def load(request):
    """Return a model in fp32 with int8 weights."""
    return loading.layer_by_layer(request, torch.float32, make_linear)


PRECISIONS = {
    "int8-subclass": Precision(
        name="int8-subclass",
        title="int8 weights as a tensor subclass",
        family="int8",
        weight_bits=8,
        compute_dtype="float32",
        load=load,
        color="#8a6d3b",
    )
}
