"""Prefill on CUDA: library products and attention, our own kernels for everything between them."""

from __future__ import annotations

import torch
import triton
from torch.nn import functional

from llmstudy.kernels import decode as kernels
from llmstudy.runtimes.engine.forward import StaticCache
from llmstudy.runtimes.engine.weights import LlamaWeights

HEAD_BLOCK = 16
SWIGLU_BLOCK = 1024


def run_prompt(
    weights: LlamaWeights, cache: StaticCache, ids: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """ids [batch, tokens] from position 0 → hidden state of the last token [batch, hidden], before the last norm.

    Fills the cache; cos and sin as of ``forward.rotary_table``.
    """
    batch, tokens = ids.shape
    x = functional.embedding(ids.flatten(), weights.embedding)
    delta = None
    for index, layer in enumerate(weights.layers):
        # Nested: a name would keep a layer's widest activations in memory while the next ones are made.
        delta = layer.output(
            _attend(
                weights,
                cache,
                index,
                layer.qkv(_add_and_norm(x, delta, layer.input_norm, weights.eps)),
                batch,
                tokens,
                cos,
                sin,
            )
        )
        delta = layer.down(swiglu(layer.gate_up(_add_and_norm(x, delta, layer.post_norm, weights.eps))))
    last = slice(tokens - 1, None, tokens)
    return x[last] + delta[last]


def _add_and_norm(x: torch.Tensor, delta: torch.Tensor | None, norm: torch.Tensor, eps: float) -> torch.Tensor:
    """x += delta, then RMSNorm of x."""
    rows, width = x.shape
    out = torch.empty_like(x)
    kernels.rms_norm_kernel[(rows,)](
        x,
        x if delta is None else delta,
        norm,
        out,
        eps,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        ADD=delta is not None,
        PDL=False,
        num_warps=8,
    )
    return out


def _attend(weights, cache, index, qkv, batch, tokens, cos, sin) -> torch.Tensor:
    heads, kv_heads, dim = weights.heads, weights.kv_heads, weights.head_dim
    qkv = qkv.contiguous()
    kernels.rotate_prompt_kernel[(batch * tokens,)](
        qkv,
        cache.keys[index],
        cache.values[index],
        cos,
        sin,
        tokens,
        cache.length,
        HEADS=heads,
        KV_HEADS=kv_heads,
        HEAD_DIM=dim,
        HALF_BLOCK=triton.next_power_of_2(dim // 2),
        HEAD_BLOCK=HEAD_BLOCK,
        num_warps=4,
    )
    q = qkv.view(batch, tokens, heads + 2 * kv_heads, dim)[:, :, :heads].transpose(1, 2)
    out = functional.scaled_dot_product_attention(
        q,
        cache.keys[index][:, :, :tokens],
        cache.values[index][:, :, :tokens],
        is_causal=True,
        scale=weights.softmax_scale,
        enable_gqa=heads != kv_heads,
    )
    return out.transpose(1, 2).reshape(batch * tokens, heads * dim)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of [rows, 2 n] → [rows, n]."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, width, dtype=gate_up.dtype, device=gate_up.device)
    kernels.swiglu_kernel[(rows, triton.cdiv(width, SWIGLU_BLOCK))](
        gate_up.contiguous(), out, WIDTH=width, BLOCK=SWIGLU_BLOCK, num_warps=4
    )
    return out
