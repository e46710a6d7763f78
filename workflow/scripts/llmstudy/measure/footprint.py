"""Bytes and operations of a model as it is loaded, and the weights of its decoder that a precision replaced.

All is read from modules, tensors and the library's cache, so that it holds for any architecture; a configuration does
not say which layers are quantized, and names its sizes differently in each. ``get_memory_footprint`` of the library
leaves out the absmax of 4-bit weights and is wrong for tensor subclasses.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import nn

from llmstudy.errors import Unsupported

COMPONENTS = ("embeddings", "linears", "norms", "head", "other")
# Layers and experts are numbered in a module's path: model.layers.3.mlp.down_proj
_LAYER = re.compile(r"\.(\d+)\.(?:.*\.)?([^.]+)$")
_EXPERTS = re.compile(r"\.experts(\.|$)")
_CACHE_LAYERS: WeakKeyDictionary = WeakKeyDictionary()  # what ``cache_layers`` found of a model
_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True)
class DecoderLinear:
    """A linear layer of the decoder; ``name`` is the last part of its path: ``q_proj`` … ``down_proj``."""

    layer: int
    name: str
    module: nn.Module


def weight_bytes(model) -> dict[str, dict[str, int]]:
    """Return bytes by component and dtype: ``{"linears": {"int8": …, "float32": …}, …}``.

    Tensors that share storage (tied embeddings) count once, as embeddings. Quantization state counts with its linear
    layer.
    """
    counts: dict[str, Counter] = {component: Counter() for component in COMPONENTS}
    for path, dtype, size in _tensors(model):
        counts[component_of(model, path)][dtype] += size
    return {component: dict(count) for component, count in counts.items()}


def component_of(model, path: str) -> str:
    """Return the component that a module belongs to, by what the module is and not by what it is called.

    ``linears`` are what precisions replace, experts included, and any other weights that are not one of the rest, so
    that no weight is missing from what a step reads. ``other`` are constants: frequencies of the rotary embedding.
    """
    module = model.get_submodule(path)
    if module is model.get_output_embeddings():
        return "head"
    if isinstance(module, nn.Embedding):
        return "embeddings"
    if "norm" in type(module).__name__.lower():
        return "norms"
    has_weights = next(module.parameters(recurse=False), None) is not None
    return "linears" if has_weights or hasattr(module, "in_features") else "other"


def _tensors(model) -> Iterator[tuple[str, str, int]]:
    """Yield (path of its module, dtype, bytes) of each storage in the model, once."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        for tensor in tensors_of(module):
            storage = tensor.untyped_storage()
            if storage.data_ptr() and storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                yield path, str(tensor.dtype).removeprefix("torch."), storage.nbytes()


def tensors_of(module: nn.Module) -> Iterator[torch.Tensor]:
    """Yield the plain tensors of a module without its children: parameters, buffers, and quantization state of
    bitsandbytes (SCB, CB, absmax, code)."""
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        yield from _plain(tensor)
        yield from _present(tensor, "SCB")
        yield from _quant_state_tensors(getattr(tensor, "quant_state", None))
    yield from _present(getattr(module, "state", None), "SCB", "CB")  # Linear8bitLt moves them here in its first call


def _plain(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the tensors that a tensor subclass such as torchao's wraps: it has no storage itself."""
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _plain(getattr(tensor, name))
    else:
        yield tensor


def _quant_state_tensors(state) -> Iterator[torch.Tensor]:
    if state is not None:
        yield from _present(state, "absmax", "code", "offset")
        yield from _quant_state_tensors(getattr(state, "state2", None))


def _present(holder, *names: str) -> Iterator[torch.Tensor]:
    yield from (tensor for name in names if (tensor := getattr(holder, name, None)) is not None)


def total(weights: dict[str, dict[str, int]], *components: str) -> int:
    """Return the bytes of the components in what ``weight_bytes`` returned; of all if none is named."""
    return sum(sum(weights[component].values()) for component in components or COMPONENTS)


def step_weight_bytes(model) -> int:
    """Return the bytes of weights that one decode step must read: all but the embedding, of which it reads a few rows.

    With tied embeddings the head is the embedding, and is read whole. Of experts a step reads at least as many as one
    token is given to. Raise Unsupported if the config does not say how many experts that are.
    """
    weights = [(path, size) for path, _, size in _tensors(model) if component_of(model, path) in ("linears", "norms")]
    experts = sum(size for path, size in weights if _EXPERTS.search(path))
    idle = round(experts * (1 - _share_of_experts(model.config))) if experts else 0
    head = sum(tensor.untyped_storage().nbytes() for tensor in tensors_of(model.get_output_embeddings()))
    return sum(size for _, size in weights) - idle + head


def _share_of_experts(config) -> float:
    """Return the share of the experts that a token is given to."""
    used = getattr(config, "num_experts_per_tok", None)
    count = next((number for name in _EXPERT_COUNTS if (number := getattr(config, name, None))), None)
    if not used or not count:
        raise Unsupported(
            f"model type {config.model_type!r} has experts, and its config does not say how many of them a token is "
            f"given to; needed: num_experts_per_tok and one of {', '.join(_EXPERT_COUNTS)}"
        )
    return used / count


def kv_bytes(model, tokens: float, whole: bool = False) -> float:
    """Return the bytes of KV cache for ``tokens`` tokens of one sequence, of a layer with a sliding window no more
    tokens than that unless the cache keeps the whole. Raise Unsupported if the model has no such cache."""
    return sum(size * (tokens if whole else min(tokens, window)) for size, window, _ in cache_layers(model))


def cache_layers(model) -> list[tuple[int, float, int]]:
    """Return for each layer of the library's KV cache (bytes of a token, window in tokens, widths of a key and a value
    together), from the cache of one token: no configuration tells whether a class stores each key-value head once
    (Falcon has both). Computed once for a model: a forward pass can take seconds."""
    if model in _CACHE_LAYERS:
        return _CACHE_LAYERS[model]
    token = torch.zeros(1, 1, dtype=torch.int64, device=model.get_input_embeddings().weight.device)
    with torch.inference_mode():
        cache = model(token, use_cache=True, logits_to_keep=1).past_key_values
    layers = [layer for layer in getattr(cache, "layers", []) if getattr(layer, "keys", None) is not None]
    if not layers or any(layer.keys.dim() != 4 for layer in layers):
        raise Unsupported(f"model type {model.config.model_type!r} keeps no keys and values for each token")
    _CACHE_LAYERS[model] = [
        (
            layer.keys.nbytes + layer.values.nbytes,
            getattr(layer, "sliding_window", None) or math.inf,
            layer.keys.shape[-1] + layer.values.shape[-1],
        )
        for layer in layers
    ]
    return _CACHE_LAYERS[model]


def step_flops(model, context: float) -> float:
    """Return the floating-point operations of a decode step of one sequence at a context in tokens.

    2 for each weight that the token is multiplied by, of experts those that it is given to, and in each layer 2 · query
    heads · widths of key and value · context: the scores and their product with the values, over the window if any.
    """
    parts = [(part, _share_of_experts(model.config) if part.expert else 1.0) for part in decoder_weights(model)]
    head = model.get_output_embeddings().weight.numel()
    heads = model.config.get_text_config(decoder=True).num_attention_heads
    attention = sum(2 * heads * widths * min(context, window) for _, window, widths in cache_layers(model))
    return 2 * (head + sum(part.weights * share for part, share in parts)) + attention


@dataclass(frozen=True)
class DecoderWeights:
    """The weights of one module of a decoder layer: their number, whether it is quantized, whether experts hold it."""

    path: str
    weights: int
    quantized: bool
    expert: bool


def decoder_weights(model) -> Iterator[DecoderWeights]:
    """Yield the weights that the decoder layers multiply by, whatever the class of the module: linear layers, Conv1D of
    GPT-2, experts in one tensor. Biases are not counted."""
    for path, module in model.named_modules():
        if not _LAYER.search(path) or component_of(model, path) != "linears":
            continue
        tensors = list(tensors_of(module))
        coded = [tensor for tensor in tensors if not (tensor.is_floating_point() and tensor.itemsize > 1)]
        if hasattr(module, "in_features"):
            weights = module.in_features * module.out_features
        else:  # two codes of 4 bits in a byte
            weights = sum(one.numel() * (1 + (one.dtype == torch.uint8)) for one in tensors if one.dim() > 1)
        if weights:
            yield DecoderWeights(path, weights, bool(coded), bool(_EXPERTS.search(path)))


def quantized_share(model) -> float:
    """Return the share of the decoder's weights, 0 … 1, that are stored in fewer than 16 bits."""
    parts = list(decoder_weights(model))
    return sum(part.weights for part in parts if part.quantized) / max(1, sum(part.weights for part in parts))


def decoder_linears(model) -> Iterator[DecoderLinear]:
    """Yield every linear layer inside the decoder layers, in forward order: those that a precision stores. Raise
    Unsupported if weights of a decoder layer belong to a module of another kind (experts), so that not all would be
    found."""
    for path, module in model.named_modules():
        found = _LAYER.search(path)
        if found and component_of(model, path) == "linears":
            if not hasattr(module, "in_features"):
                raise Unsupported(f"{path} ({type(module).__name__}) has weights and is no linear layer")
            yield DecoderLinear(int(found[1]), found[2], module)
