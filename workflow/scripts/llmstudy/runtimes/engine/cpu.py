"""The token loop on the CPU: no graph to capture, but the same fused projections and static cache."""

from __future__ import annotations

import time

import torch

from llmstudy.runtimes.base import Timeline
from llmstudy.runtimes.engine.forward import StaticCache, last_logits, rotary_table, run_layers
from llmstudy.runtimes.engine.weights import LlamaWeights


class CpuEngine:
    """Greedy generation of a fixed shape with a static cache."""

    def __init__(self, weights: LlamaWeights, batch: int, prompt_tokens: int, new_tokens: int):
        self.weights = weights
        self.prompt_tokens, self.new_tokens = prompt_tokens, new_tokens
        length = prompt_tokens + new_tokens
        self.cache = StaticCache.allocate(weights, batch, length)
        self.cos, self.sin = rotary_table(weights, length)
        self.logits = torch.zeros(batch, weights.vocabulary, dtype=weights.dtype)

    def generate(self, input_ids: torch.Tensor) -> Timeline:
        begin = time.perf_counter()
        ids, start = input_ids, 0
        tokens, token_s = [], []
        for _ in range(self.new_tokens):
            x = run_layers(self.weights, self.cache, ids, start, self.cos, self.sin)
            self.logits = last_logits(self.weights, x)
            start += ids.shape[1]
            ids = self.logits.argmax(dim=-1, keepdim=True)
            tokens.append(ids)
            token_s.append(time.perf_counter() - begin)
        return Timeline(tokens=torch.cat(tokens, dim=1), token_s=token_s)
