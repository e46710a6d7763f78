"""The decoder layer in plain PyTorch over a static cache: the reference for the kernels, and the loop on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from llmstudy.runtimes import Timeline
from llmstudy.runtimes.graph.layer import StaticCache, causal_attention, last_logits, rotary_table, run_layers
from llmstudy.runtimes.graph.weights import LlamaWeights


class CpuEngine:
    """Greedy generation of a fixed shape; the ``layer.Operations`` of the tokens from position ``start`` on."""

    def __init__(self, weights: LlamaWeights, batch: int, prompt_tokens: int, new_tokens: int):
        self.weights, self.new_tokens = weights, new_tokens
        length = prompt_tokens + new_tokens
        self.cache = StaticCache.allocate(weights, batch, length)
        self.cos, self.sin = rotary_table(weights, length)
        self.start = 0
        self.logits = torch.zeros(batch, weights.vocabulary, dtype=weights.dtype)

    def generate(self, input_ids: torch.Tensor) -> Timeline:
        """See ``runtimes.Runtime``."""
        begin = time.perf_counter()
        tokens, token_s = [], []

        def largest(number: int) -> torch.Tensor:
            tokens.append(self.logits.argmax(dim=-1, keepdim=True))
            token_s.append(time.perf_counter() - begin)
            return tokens[-1]

        self._run(input_ids, largest)
        return Timeline(tokens=torch.cat(tokens, dim=1), token_s=token_s)

    def score(self, input_ids: torch.Tensor, tokens: torch.Tensor, take: Callable[[int, torch.Tensor], None]) -> None:
        """See ``runtimes.Runtime``."""

        def given(number: int) -> torch.Tensor:
            take(number, self.logits)
            return tokens[:, number, None]

        self._run(input_ids, given)

    def _run(self, ids: torch.Tensor, choose: Callable[[int], torch.Tensor]) -> None:
        """Run the prompt and then each token [batch, 1] that ``choose`` returns, but the last; it reads ``logits``."""
        self.start = 0
        for number in range(self.new_tokens):
            x = run_layers(self.weights.layers, self, functional.embedding(ids, self.weights.embedding))
            self.logits = last_logits(self.weights, x[:, -1])
            self.start += ids.shape[1]
            ids = choose(number)

    def project(
        self,
        x: torch.Tensor,
        module: nn.Module,
        norm: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
        gated: bool = False,
    ) -> torch.Tensor:
        """See ``layer.Operations``; x [batch, tokens, in]."""
        if norm is not None:
            x = functional.rms_norm(x, norm.shape, norm, self.weights.eps)
        y = module(x)
        if gated:
            gate, up = y.chunk(2, dim=-1)
            y = functional.silu(gate) * up
        return y if residual is None else residual + y

    def attend(self, index: int, qkv: torch.Tensor) -> torch.Tensor:
        """See ``layer.Operations``; several tokens at once are a prompt and begin at position 0."""
        batch, tokens, _ = qkv.shape
        heads, kv_heads, width = self.weights.heads, self.weights.kv_heads, self.weights.head_dim
        new = slice(self.start, self.start + tokens)
        by_head = qkv.view(batch, tokens, heads + 2 * kv_heads, width).transpose(1, 2)
        q, k, v = by_head.split((heads, kv_heads, kv_heads), dim=1)
        layer = self.weights.layers[index]
        if layer.q_norm is not None:
            q = functional.rms_norm(q, (width,), layer.q_norm, self.weights.eps)
            k = functional.rms_norm(k, (width,), layer.k_norm, self.weights.eps)
        keys, values = self.cache.keys[index], self.cache.values[index]
        keys[:, :, new] = rotate(k, self.cos[new], self.sin[new])
        values[:, :, new] = v
        q = rotate(q, self.cos[new], self.sin[new])
        context = slice(0, new.stop)
        out = causal_attention(q, keys[:, :, context], values[:, :, context], self.weights.softmax_scale, layer.window)
        return out.transpose(1, 2).reshape(batch, tokens, heads * width)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Return RoPE of x [..., tokens, head_dim] (Su et al. 2021, arXiv:2104.09864), halves layout."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
