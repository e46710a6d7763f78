"""Arithmetic that measuring and tables share."""

from __future__ import annotations


def causal_attention_flops(heads: int, head_dim: int, context: int) -> float:
    """Return the operations of one layer's causal attention over n tokens: 4 · heads · head width · n² / 2.

    Two products over half the square, as the FlashAttention papers count (Dao 2023, arXiv:2307.08691, section 4.1).
    """
    return 4 * heads * head_dim * context**2 / 2


def protocol_name(protocol: dict, bos: bool) -> str:
    """Return the label of a protocol in tables, for instance ``w1024-s512-bos``."""
    return f"w{protocol['window']}-s{protocol['stride']}" + ("-bos" if bos else "")
