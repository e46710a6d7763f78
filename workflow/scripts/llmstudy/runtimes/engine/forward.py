"""The layers in plain PyTorch over a static cache: prefill on every device, decode on the CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from llmstudy.runtimes.engine.weights import Layer, LlamaWeights


@dataclass(frozen=True)
class StaticCache:
    """Keys and values of every layer, allocated once: [layers, batch, kv_heads, length, head_dim]."""

    keys: torch.Tensor
    values: torch.Tensor

    @classmethod
    def allocate(cls, weights: LlamaWeights, batch: int, length: int) -> StaticCache:
        shape = (len(weights.layers), batch, weights.kv_heads, length, weights.head_dim)
        options = {"dtype": weights.dtype, "device": weights.device}
        return cls(torch.zeros(shape, **options), torch.zeros(shape, **options))

    @property
    def length(self) -> int:
        return self.keys.shape[3]


def rotary_table(weights: LlamaWeights, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [length, head_dim] of positions 0 … length - 1 in the model's dtype."""
    positions = torch.arange(length, device=weights.device)[None]
    cos, sin = weights.rotary(weights.embedding[:1], positions)
    return cos[0].contiguous(), sin[0].contiguous()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE on [..., tokens, head_dim] (Su et al. 2021, arXiv:2104.09864), halves layout."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def attend(
    weights: LlamaWeights,
    cache: StaticCache,
    index: int,
    qkv: torch.Tensor,
    start: int,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> torch.Tensor:
    """qkv [batch, tokens, (heads + 2 kv_heads) * head_dim] of tokens at ``start`` → [batch, tokens, heads * head_dim].

    Writes keys and values to the cache. Several tokens at once are a prompt: start must be 0.
    """
    batch, tokens, _ = qkv.shape
    heads, kv_heads = weights.heads, weights.kv_heads
    q, k, v = (
        qkv.view(batch, tokens, heads + 2 * kv_heads, weights.head_dim)
        .transpose(1, 2)
        .split((heads, kv_heads, kv_heads), 1)
    )
    stop = start + tokens
    q = rotate(q, cos[start:stop], sin[start:stop])
    keys, values = cache.keys[index], cache.values[index]
    keys[:, :, start:stop] = rotate(k, cos[start:stop], sin[start:stop])
    values[:, :, start:stop] = v
    out = functional.scaled_dot_product_attention(
        q,
        keys[:, :, :stop],
        values[:, :, :stop],
        is_causal=tokens > 1,
        scale=weights.softmax_scale,
        enable_gqa=heads != kv_heads,
    )
    return out.transpose(1, 2).reshape(batch, tokens, heads * weights.head_dim)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of [..., 2 n] → [..., n]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


def run_layers(
    weights: LlamaWeights,
    cache: StaticCache,
    ids: torch.Tensor,
    start: int,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> torch.Tensor:
    """ids [batch, tokens] at position ``start`` → last token's hidden state [batch, hidden], not normed."""
    x = functional.embedding(ids, weights.embedding)
    shape = (weights.hidden,)
    for index, layer in enumerate(weights.layers):
        x = _layer(weights, cache, index, layer, x, shape, start, cos, sin)
    return x[:, -1]


def last_logits(weights: LlamaWeights, x: torch.Tensor) -> torch.Tensor:
    """Hidden state [batch, hidden] → logits [batch, vocabulary] in the model's dtype."""
    return weights.head(functional.rms_norm(x, (weights.hidden,), weights.norm, weights.eps))


def _layer(weights, cache, index, layer: Layer, x, shape, start, cos, sin):
    normed = functional.rms_norm(x, shape, layer.input_norm, weights.eps)
    x = x + layer.output(attend(weights, cache, index, layer.qkv(normed), start, cos, sin))
    normed = functional.rms_norm(x, shape, layer.post_norm, weights.eps)
    return x + layer.down(swiglu(layer.gate_up(normed)))
