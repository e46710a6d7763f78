"""Arithmetic of the LLaMA architecture, from a model's shape: what is known before anything is loaded.

Weights of one layer (Touvron et al. 2023, arXiv:2302.13971; grouped queries: Ainslie et al. 2023, arXiv:2305.13245) as
outputs × inputs: q heads·d × h, k and v kv_heads·d × h, o h × heads·d, gate and up i × h, down h × i; d is the head
width, h the hidden and i the intermediate size. Two norms of h in each layer, one at the end. No biases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmstudy.errors import Unsupported

BOS = "-bos"  # at the end of a protocol's label
ROOM = 1.2  # times its weights: what a model needs for itself, activations and a short KV cache


@dataclass(frozen=True)
class Shape:
    """The sizes of a model, with those filled in that its configuration may omit."""

    hidden: int  # width of the residual stream
    intermediate: int  # width between the linear layers of the MLP
    layers: int
    heads: int  # query heads
    kv_heads: int  # key-value heads; as many as query heads if the configuration does not say (LLaMA 1)
    head_dim: int  # width of a head; ``hidden / heads`` if the configuration does not say
    vocabulary: int  # rows of the embedding and of the head
    tied: bool  # whether the head is the embedding

    @classmethod
    def of(cls, config: Mapping[str, Any] | object) -> Shape:
        """Return the shape of a model from a mapping with the keys of ``config.json``, or a transformers config.

        Raises:
            Unsupported: a size is missing that only the configuration knows.
        """

        optional = config.get if isinstance(config, Mapping) else lambda name: getattr(config, name, None)

        def required(name: str) -> int:
            if (value := optional(name)) is None:
                raise Unsupported(f"the model's configuration has no {name!r}: it is not that of a LLaMA")
            return value

        hidden, heads = required("hidden_size"), required("num_attention_heads")
        return cls(
            hidden=hidden,
            intermediate=required("intermediate_size"),
            layers=required("num_hidden_layers"),
            heads=heads,
            kv_heads=optional("num_key_value_heads") or heads,
            head_dim=optional("head_dim") or hidden // heads,
            vocabulary=required("vocab_size"),
            tied=bool(optional("tie_word_embeddings")),
        )

    @property
    def matmul_weights(self) -> int:
        """Return the weights that each token is multiplied by: q, k, v, o, gate, up, down of all layers, the head."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate) + self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """Return the parameters; an embedding that is also the head counts once."""
        norms = (2 * self.layers + 1) * self.hidden
        return self.matmul_weights + norms + (0 if self.tied else self.vocabulary * self.hidden)


def causal_attention_flops(heads: int, head_dim: int, context: int) -> float:
    """Return the operations of one layer's causal attention over n tokens: 4 · heads · head width · n² / 2.

    Two products over half the square, as the FlashAttention papers count (Dao 2023, arXiv:2307.08691, section 4.1).
    """
    return 4 * heads * head_dim * context**2 / 2


def protocol_name(protocol: Mapping[str, int], bos: bool) -> str:
    """Return the label of a quality protocol in records and tables: ``w1024-s512-bos`` of windows, of forced tokens
    ``decode-b8-p64-n80`` with their batch size, and ``pass-p64-n80`` for 0: one pass over the same text."""
    if "window" in protocol:
        name = f"w{protocol['window']}-s{protocol['stride']}"
    else:
        how = f"decode-b{protocol['batch']}" if protocol["batch"] else "pass"
        name = f"{how}-p{protocol['prompt_tokens']}-n{protocol['new_tokens']}"
    return name + BOS * bos


def without_bos(name: str) -> str:
    """Return the label of a protocol without what it says of the beginning of a text, which each tokenizer decides
    where the config does not: one model has it with, another without."""
    return name.removesuffix(BOS)


def gpus_needed(weight_bytes: float, memory_bytes: float) -> int:
    """Return how many GPUs of ``memory_bytes`` a model of ``weight_bytes`` needs."""
    return max(1, math.ceil(ROOM * weight_bytes / memory_bytes))
