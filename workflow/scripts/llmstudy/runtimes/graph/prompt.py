"""Prefill on CUDA: the libraries' products and attention, this project's kernels for everything between them."""

from __future__ import annotations

import torch
import triton
from torch import nn
from torch.nn import functional

from llmstudy.kernels import decode as kernels
from llmstudy.runtimes.graph.layer import StaticCache, causal_attention, run_layers
from llmstudy.runtimes.graph.weights import LlamaWeights

HEAD_BLOCK = 16
SWIGLU_BLOCK = 1024


class Prompt:
    """``layer.Operations`` of a prompt, x [batch * tokens, …]; an output is added to x together with the next norm."""

    def __init__(self, weights: LlamaWeights, cache: StaticCache, cos: torch.Tensor, sin: torch.Tensor):
        self.weights, self.cache, self.cos, self.sin = weights, cache, cos, sin
        self.delta: torch.Tensor | None = None

    def run(self, ids: torch.Tensor) -> torch.Tensor:
        """Fill the cache; return the hidden state of the last token, [batch, hidden], before the last norm.

        ids int64 [batch, tokens] from position 0.
        """
        self.batch, self.tokens = ids.shape
        x = run_layers(self.weights.layers, self, functional.embedding(ids.flatten(), self.weights.embedding))
        delta, self.delta = self.delta, None
        last = slice(self.tokens - 1, None, self.tokens)
        return x[last] + delta[last]

    def project(
        self,
        x: torch.Tensor,
        module: nn.Module,
        norm: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
        gated: bool = False,
    ) -> torch.Tensor:
        """See ``layer.Operations``: either ``norm`` or ``residual`` is given. The residual stream changes in place."""
        if norm is None:
            self.delta = module(x)
            return residual
        y = module(self._add_and_norm(x, norm))
        return swiglu(y) if gated else y

    def attend(self, index: int, qkv: torch.Tensor) -> torch.Tensor:
        """See ``layer.Operations``."""
        heads, kv_heads, dim = self.weights.heads, self.weights.kv_heads, self.weights.head_dim
        keys, values = self.cache.keys[index], self.cache.values[index]
        layer, qkv = self.weights.layers[index], qkv.contiguous()
        kernels.rotate_prompt_kernel[(self.batch * self.tokens,)](
            qkv, keys, values, self.cos, self.sin, layer.q_norm, layer.k_norm, self.tokens, self.cache.length,
            self.weights.eps, HEADS=heads, KV_HEADS=kv_heads, HEAD_DIM=dim, HALF_BLOCK=triton.next_power_of_2(dim // 2),
            HEAD_BLOCK=HEAD_BLOCK, NORM=layer.q_norm is not None, num_warps=4,
        )  # fmt: skip
        q = qkv.view(self.batch, self.tokens, heads + 2 * kv_heads, dim)[:, :, :heads].transpose(1, 2)
        keys, values = keys[:, :, : self.tokens], values[:, :, : self.tokens]
        out = causal_attention(q, keys, values, self.weights.softmax_scale, layer.window)
        return out.transpose(1, 2).reshape(self.batch * self.tokens, heads * dim)

    def _add_and_norm(self, x: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        """x += delta, then RMSNorm of x."""
        rows, width = x.shape
        out = torch.empty_like(x)
        kernels.rms_norm_kernel[(rows,)](
            x, x if self.delta is None else self.delta, norm, out, self.weights.eps,
            WIDTH=width, BLOCK=triton.next_power_of_2(width), ADD=self.delta is not None, PDL=False, num_warps=8,
        )  # fmt: skip
        return out


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up, [rows, n], of gate_up [rows, 2 n]."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, width, dtype=gate_up.dtype, device=gate_up.device)
    kernels.swiglu_kernel[(rows, triton.cdiv(width, SWIGLU_BLOCK))](
        gate_up.contiguous(), out, WIDTH=width, BLOCK=SWIGLU_BLOCK, num_warps=4
    )
    return out
