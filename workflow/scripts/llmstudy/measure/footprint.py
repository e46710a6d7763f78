"""Bytes of a model and of its KV cache, counted from the tensors themselves.

``get_memory_footprint`` leaves out the absmax of 4-bit weights and is wrong for tensor subclasses.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

COMPONENTS = ("embeddings", "linears", "norms", "head", "other")


def weight_bytes(model: nn.Module) -> dict[str, dict[str, int]]:
    """Bytes by component and dtype: ``{"linears": {"int8": …, "float32": …}, …}``.

    Tensors that share storage (tied embeddings) count once, as embeddings. Quantisation state counts with its linear.
    """
    seen: set[int] = set()
    found: dict[str, Counter] = {component: Counter() for component in COMPONENTS}
    for path, module in model.named_modules():
        component = component_of(path, module)
        for tensor in tensors_of(module):
            key = tensor.untyped_storage().data_ptr()
            if key and key not in seen:
                seen.add(key)
                found[component][str(tensor.dtype).removeprefix("torch.")] += tensor.untyped_storage().nbytes()
    return {component: dict(counts) for component, counts in found.items()}


def component_of(path: str, module: nn.Module) -> str:
    """Which component of a LLaMA model a module belongs to."""
    name = path.rsplit(".", 1)[-1]
    if name == "embed_tokens":
        return "embeddings"
    if name == "lm_head":
        return "head"
    if "norm" in name:
        return "norms"
    return "linears" if ".layers." in f".{path}." and name.endswith("_proj") else "other"


def tensors_of(module: nn.Module):
    """Parameters and buffers of this module alone, with bitsandbytes' quantisation state (SCB, absmax, code)."""
    yield from (parameter for parameter in module.parameters(recurse=False))
    yield from module.buffers(recurse=False)
    for parameter in module.parameters(recurse=False):
        scales = getattr(parameter, "SCB", None)
        if scales is not None:
            yield scales
        yield from _quant_state_tensors(getattr(parameter, "quant_state", None))
    state = getattr(module, "state", None)  # Linear8bitLt moves its scales here at the first forward
    if getattr(state, "SCB", None) is not None:
        yield state.SCB
    if getattr(state, "CB", None) is not None:
        yield state.CB


def _quant_state_tensors(state):
    if state is None:
        return
    for name in ("absmax", "code", "offset"):
        tensor = getattr(state, name, None)
        if tensor is not None:
            yield tensor
    yield from _quant_state_tensors(getattr(state, "state2", None))


def total(weights: dict[str, dict[str, int]], *components: str) -> int:
    """Bytes of the given components, all of them if none is given."""
    return sum(sum(weights[component].values()) for component in components or COMPONENTS)


def step_weight_bytes(model: nn.Module, weights: dict[str, dict[str, int]]) -> int:
    """Bytes of weights that one decode step must read: all but the embedding, of which it reads a few rows.

    With tied embeddings the head is the embedding, and is read whole.
    """
    head = total(weights, "head") or total(weights, "embeddings")
    return total(weights, "linears", "norms") + head


def kv_bytes_per_token(config, dtype: torch.dtype) -> int:
    """Bytes of KV cache for one token of one sequence: 2 · layers · KV heads · head dimension · bytes of a value."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head_dimension(config) * dtype.itemsize


def head_dimension(config) -> int:
    """Width of an attention head: as the config says, else the hidden size shared by all heads."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
