"""A LLaMA's parameters, taken out of the library's model and arranged for a token loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaForCausalLM

from llmstudy.errors import Unsupported
from llmstudy.kernels.linear import Int8Linear


class DenseLinear(nn.Module):
    """Several ``nn.Linear`` on the same input as one: weight [sum of out, in], which the parts now view."""

    def __init__(self, parts: Sequence[nn.Linear]):
        super().__init__()
        self.weight, self.bias = _join(parts, "weight"), _join(parts, "bias")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight, self.bias)


class Opaque(nn.Module):
    """Linears that only their own library can multiply (bitsandbytes): called one after the other."""

    def __init__(self, parts: Sequence[nn.Module]):
        super().__init__()
        self.parts = tuple(parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = [part(x) for part in self.parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


@dataclass(frozen=True)
class Layer:
    """One decoder layer: norms [hidden], projections as modules on [..., in]."""

    input_norm: torch.Tensor
    qkv: nn.Module
    output: nn.Module
    post_norm: torch.Tensor
    gate_up: nn.Module
    down: nn.Module


@dataclass(frozen=True)
class LlamaWeights:
    """Everything that a step reads. ``rotary(x, position_ids)`` is the library's, so that rope scaling is too."""

    embedding: torch.Tensor
    layers: tuple[Layer, ...]
    norm: torch.Tensor
    head: nn.Module
    rotary: nn.Module
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    softmax_scale: float

    @property
    def hidden(self) -> int:
        return self.embedding.shape[1]

    @property
    def vocabulary(self) -> int:
        return self.embedding.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def fused(self) -> bool:
        """Whether every projection is one whose weights the kernels can read."""
        return not any(isinstance(part, Opaque) for layer in self.layers for part in (layer.qkv, layer.down))


def extract(model: nn.Module) -> LlamaWeights:
    """The weights of a ``LlamaForCausalLM``; fuses q, k, v and gate, up in place, the model stays usable.

    Raises Unsupported for another architecture, and for a model that is spread over several devices.
    """
    if not isinstance(model, LlamaForCausalLM):
        raise Unsupported(f"the graph runtime knows LlamaForCausalLM, not {type(model).__name__}")
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1:
        raise Unsupported(f"the graph runtime needs the model on one device, not on {len(devices)}")
    config = model.config
    attention = model.model.layers[0].self_attn
    if config.hidden_act not in ("silu", "swish"):
        raise Unsupported(f"the graph runtime knows the activation silu, not {config.hidden_act!r}")
    rope_type = getattr(model.model.rotary_emb, "rope_type", "default")
    if rope_type in ("dynamic", "longrope"):
        raise Unsupported(f"the graph runtime computes rotary angles once; rope type {rope_type!r} changes them")
    return LlamaWeights(
        embedding=model.model.embed_tokens.weight.detach(),
        layers=tuple(map(_layer, model.model.layers)),
        norm=model.model.norm.weight.detach(),
        head=fuse([model.lm_head]),
        rotary=model.model.rotary_emb,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=attention.head_dim,
        eps=config.rms_norm_eps,
        softmax_scale=attention.scaling,
    )


def fuse(parts: Sequence[nn.Module]) -> nn.Module:
    """One module with the outputs of ``parts`` side by side."""
    if all(type(part) is nn.Linear for part in parts):
        return DenseLinear(parts)
    if all(isinstance(part, Int8Linear) for part in parts):
        return parts[0] if len(parts) == 1 else type(parts[0]).fuse(parts)
    return Opaque(parts)


def _layer(layer: nn.Module) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    found = Layer(
        input_norm=layer.input_layernorm.weight.detach(),
        qkv=fuse([attention.q_proj, attention.k_proj, attention.v_proj]),
        output=fuse([attention.o_proj]),
        post_norm=layer.post_attention_layernorm.weight.detach(),
        gate_up=fuse([mlp.gate_proj, mlp.up_proj]),
        down=fuse([mlp.down_proj]),
    )
    # The parts' own tensors are free now. Kept, they would be cut up for the next layer's and leave holes.
    torch.cuda.empty_cache()
    return found


def _join(parts: Sequence[nn.Linear], name: str) -> torch.Tensor | None:
    """One tensor of all parts along the outputs; with several parts, these become views of it."""
    tensors = [getattr(part, name) for part in parts]
    if tensors[0] is None:
        return None
    if len(tensors) == 1:
        return tensors[0].detach()
    joined = torch.cat([tensor.detach() for tensor in tensors])
    for tensor, view in zip(tensors, joined.split([tensor.shape[0] for tensor in tensors]), strict=True):
        tensor.data = view
    return joined
