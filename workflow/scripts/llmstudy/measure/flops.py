"""Arithmetic: how much a decode step needs, and how much this device does in a matrix product."""

from __future__ import annotations

import statistics
import time

from llmstudy.measure.footprint import head_dimension

SIDE = {"cuda": 8192, "cpu": 1024}  # large enough that the product is limited by arithmetic
PRODUCTS = 7


def matmul_tflops(device: str, dtype, synchronize) -> float:
    """Median TFLOP/s (2 n³ operations) of a square matrix product, measured in this process."""
    import torch

    side = SIDE[device]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = left @ right
    seconds = []
    for _ in range(PRODUCTS):
        synchronize()
        start = time.perf_counter()
        torch.matmul(left, right, out=out)
        synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / statistics.median(seconds) / 1e12


def step_flops(config, batch: int, context: float) -> float:
    """Floating-point operations of one decode step of a LLaMA model: 2 per weight of linears and head for each row,
    and for attention 4 · heads · head dimension per token of context and layer."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    head_dim = head_dimension(config)
    projections = 2 * hidden * head_dim * (heads + config.num_key_value_heads)
    layer = projections + 3 * hidden * config.intermediate_size
    weights = config.num_hidden_layers * layer + config.vocab_size * hidden
    return batch * (2 * weights + 4 * config.num_hidden_layers * heads * head_dim * context)


def causal_attention_flops(heads: int, head_dim: int, context: int) -> float:
    """Operations of causal attention over n tokens: 4 · heads · head dimension · n² / 2, two products over half the
    square, as the FlashAttention papers count (Dao 2023, arXiv:2307.08691, section 4.1)."""
    return 4 * heads * head_dim * context**2 / 2
