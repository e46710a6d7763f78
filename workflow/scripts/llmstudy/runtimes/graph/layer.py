"""The decoder layer of the graph runtime, written once, and what all of its operations share: cache, angles, head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional

from llmstudy.runtimes.graph.weights import Layer, LlamaWeights


class Operations(Protocol):
    """The operations that make up a decoder layer.

    ``plain.CpuEngine`` is the reference; ``prompt.Prompt`` and ``step.DecodeStep`` are CUDA's prefill and decode step.
    """

    def project(
        self,
        x: torch.Tensor,
        module: nn.Module,
        norm: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
        gated: bool = False,
    ) -> torch.Tensor:
        """Return RMSNorm of x by the weight ``norm`` → ``module`` → SwiGLU if ``gated`` → plus ``residual``."""

    def attend(self, index: int, qkv: torch.Tensor) -> torch.Tensor:
        """Return the attention of layer ``index``, [..., heads * head_dim]; write its keys and values to the cache.

        qkv [..., (heads + 2 kv_heads) * head_dim] is not rotated yet.
        """


def run_layers(layers: Sequence[Layer], ops: Operations, x: torch.Tensor) -> torch.Tensor:
    """Return the residual stream x [..., hidden] after all decoder layers."""
    for index, layer in enumerate(layers):
        # Nested: a name would keep the widest activations of a layer in memory while the next ones are made.
        x = ops.project(ops.attend(index, ops.project(x, layer.qkv, norm=layer.input_norm)), layer.output, residual=x)
        x = ops.project(ops.project(x, layer.gate_up, norm=layer.post_norm, gated=True), layer.down, residual=x)
    return x


@dataclass(frozen=True)
class StaticCache:
    """Keys and values of every layer, allocated once: [layers, batch, kv_heads, length, head_dim]."""

    keys: torch.Tensor
    values: torch.Tensor

    @classmethod
    def allocate(cls, weights: LlamaWeights, batch: int, length: int) -> StaticCache:
        """Return a cache of zeros for ``batch`` sequences of ``length`` tokens."""
        shape = (len(weights.layers), batch, weights.kv_heads, length, weights.head_dim)
        options = {"dtype": weights.dtype, "device": weights.device}
        return cls(torch.zeros(shape, **options), torch.zeros(shape, **options))

    @property
    def length(self) -> int:
        """Tokens that a sequence can have."""
        return self.keys.shape[3]


def causal_attention(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, window: int | None
) -> torch.Tensor:
    """Return the attention [batch, heads, tokens, head_dim] of a prompt to itself, or of one token to all so far.

    Args:
        q: rotated queries, [batch, heads, tokens, head_dim].
        keys, values: [batch, kv_heads, context, head_dim]; the context is the tokens of the prompt, or ends with the
            one token.
        scale: of the scores.
        window: tokens that a token attends to, itself included; None for all.
    """
    tokens, grouped, mask = q.shape[2], q.shape[1] != keys.shape[1], None
    if window and tokens == 1:
        keys, values = keys[:, :, -window:], values[:, :, -window:]
    elif window and tokens > window:
        at = torch.arange(tokens, device=q.device)
        age = at[:, None] - at
        mask = (age >= 0) & (age < window)
        if grouped:  # PyTorch's fused kernels do not take a mask with grouped heads
            group = q.shape[1] // keys.shape[1]
            keys, values, grouped = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1), False
    causal = tokens > 1 and mask is None
    return functional.scaled_dot_product_attention(
        q, keys, values, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped
    )


def rotary_table(weights: LlamaWeights, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos and sin [length, head_dim] of the positions 0 … length - 1 in the model's dtype."""
    positions = torch.arange(length, device=weights.device)[None]
    cos, sin = weights.rotary(weights.embedding[:1], positions)
    return cos[0].contiguous(), sin[0].contiguous()


def last_logits(weights: LlamaWeights, x: torch.Tensor) -> torch.Tensor:
    """Return the logits [batch, vocabulary] of hidden states [batch, hidden], in the model's dtype."""
    return weights.head(functional.rms_norm(x, (weights.hidden,), weights.norm, weights.eps))
