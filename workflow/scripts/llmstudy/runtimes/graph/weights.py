"""The parameters of a LLaMA or its like, from the library's model, arranged for a token loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM

from llmstudy.errors import Unsupported
from llmstudy.kernels.linear import QuantizedLinear, join

# Their layers differ in what ``Layer`` holds: biases, norms of queries and keys, a sliding window.
ARCHITECTURES = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)


class DenseLinear(nn.Module):
    """Several ``nn.Linear`` on the same input as one: weight [sum of out, in], of which the parts become views."""

    def __init__(self, parts: Sequence[nn.Linear]):
        super().__init__()
        self.weight, self.bias = join(parts, "weight"), join(parts, "bias")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight, self.bias)


class UnfusedLinear(nn.Module):
    """Linear layers that only their library can multiply (bitsandbytes, torchao): called one after the other."""

    def __init__(self, parts: Sequence[nn.Module]):
        super().__init__()
        self.parts = tuple(parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = [part(x) for part in self.parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


@dataclass(frozen=True)
class Layer:
    """The weights of a decoder layer: norms [hidden], projections as modules on [..., in].

    Attributes:
        q_norm, k_norm: RMSNorm weights [head_dim] of each query and key head before they are rotated, or None.
        window: tokens that a token attends to, itself included; None for all before it.
    """

    input_norm: torch.Tensor
    qkv: nn.Module
    output: nn.Module
    post_norm: torch.Tensor
    gate_up: nn.Module
    down: nn.Module
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    window: int | None


@dataclass(frozen=True)
class LlamaWeights:
    """Everything that a step reads, and the sizes that it needs.

    ``rotary(x, position_ids)`` is the library's module, whose cos and sin have every kind of rope scaling in them.
    """

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
        """Return whether the kernels can read the weights of every projection."""
        projections = [self.head]
        for layer in self.layers:
            projections += [layer.qkv, layer.output, layer.gate_up, layer.down]
        return not any(isinstance(module, UnfusedLinear) for module in projections)


def extract(model: nn.Module) -> LlamaWeights:
    """Return the weights of one of ``ARCHITECTURES``; fuse q, k, v and gate, up in place: the model stays usable.

    Raises:
        Unsupported: another architecture or activation, changing rotary angles, an embedding that is not dense, or a
            model that is spread over several devices.
    """
    if type(model) not in ARCHITECTURES:
        known = ", ".join(one.__name__ for one in ARCHITECTURES)
        raise Unsupported(f"the graph runtime knows {known}, not {type(model).__name__}")
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1:
        raise Unsupported(f"the graph runtime needs the model on one device, not on {len(devices)}")
    config = model.config
    attention = model.model.layers[0].self_attn
    if config.hidden_act not in ("silu", "swish"):
        raise Unsupported(f"the graph runtime knows the activation silu, not {config.hidden_act!r}")
    rope_type = getattr(model.model.rotary_emb, "rope_type", "default")
    parameters = model.config.rope_parameters
    if rope_type == "dynamic" or (rope_type == "longrope" and parameters["short_factor"] != parameters["long_factor"]):
        raise Unsupported(f"the graph runtime computes rotary angles once; rope type {rope_type!r} changes them")
    embedding = model.model.embed_tokens.weight
    if not _dense(embedding):
        raise Unsupported(f"the graph runtime reads a dense embedding, not a {type(embedding).__name__}")
    return LlamaWeights(
        embedding=embedding.detach(),
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
    """Return one module with the outputs of ``parts``, which share their input, side by side."""
    if all(type(part) is nn.Linear and _dense(part.weight) for part in parts):
        return DenseLinear(parts)
    if all(isinstance(part, QuantizedLinear) for part in parts):
        return parts[0] if len(parts) == 1 else type(parts[0]).fuse(parts)
    return UnfusedLinear(parts)


def _dense(weight: torch.Tensor) -> bool:
    """Return whether a weight is a plain tensor: torchao keeps ``nn.Linear`` and makes its weight a subclass of Tensor,
    which has no memory of its own that a kernel could read."""
    return type(weight) in (nn.Parameter, torch.Tensor)


def _layer(layer: nn.Module) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    weights = Layer(
        input_norm=layer.input_layernorm.weight.detach(),
        qkv=fuse([attention.q_proj, attention.k_proj, attention.v_proj]),
        output=fuse([attention.o_proj]),
        post_norm=layer.post_attention_layernorm.weight.detach(),
        gate_up=fuse([mlp.gate_proj, mlp.up_proj]),
        down=fuse([mlp.down_proj]),
        q_norm=attention.q_norm.weight.detach() if hasattr(attention, "q_norm") else None,
        k_norm=attention.k_norm.weight.detach() if hasattr(attention, "k_norm") else None,
        # Mistral's layers do not have it themselves; LLaMA has none.
        window=getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None)),
    )
    # The tensors of the parts are free now. Kept, they would be cut up for those of the next layer and leave holes.
    torch.cuda.empty_cache()
    return weights
