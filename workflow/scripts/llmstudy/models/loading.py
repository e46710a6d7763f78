"""Two ways to bring a model to its device: through the library, or parameter by parameter.

The library's ``from_pretrained`` is what users run, so real weights go through it wherever it knows the precision.
``layer_by_layer`` serves what it cannot do: synthetic weights that never touch the disk, and precisions of our own,
with a peak of the finished model plus one 16-bit layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llmstudy.errors import Unsupported
from llmstudy.models.precisions.base import LoadRequest

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

MakeLinear = Callable[["torch.Tensor", "torch.Tensor | None"], "nn.Module"]


def from_library(request: LoadRequest, dtype: torch.dtype, **options: Any) -> PreTrainedModel:
    """The model through ``AutoModelForCausalLM.from_pretrained``; options go to it (``quantization_config``)."""
    from transformers import AutoModelForCausalLM

    device_map = request.device_map or {"": request.device}
    return AutoModelForCausalLM.from_pretrained(
        request.weights.folder,
        dtype=dtype,
        attn_implementation=request.attention,
        device_map=device_map,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        **options,
    ).eval()


def layer_by_layer(request: LoadRequest, dtype: torch.dtype, make_linear: MakeLinear | None = None) -> PreTrainedModel:
    """The model built on the meta device and materialised one parameter at a time.

    ``make_linear(weight [out, in], bias [out] or None)`` returns the module that takes the place of a decoder
    linear; without it linears stay dense. Embeddings, norms and the head keep ``dtype``: bitsandbytes leaves them too.
    """
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM

    if request.device_map:
        raise Unsupported("this precision loads layer by layer onto one device; it cannot be spread over several GPUs")
    config = request.weights.config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=request.attention)

    def tensor(name: str, like: torch.Tensor) -> torch.Tensor:
        return request.weights.tensor(name, tuple(like.shape), dtype, request.device)

    with torch.no_grad():
        for path, module in list(model.named_modules()):
            if make_linear and isinstance(module, nn.Linear) and not path.endswith("lm_head"):
                weight = tensor(f"{path}.weight", module.weight)
                bias = None if module.bias is None else tensor(f"{path}.bias", module.bias)
                # What drawing took is returned before the quantised weight is allocated, and the 16-bit weight before
                # the next is. Quantised weights that the allocator cuts out of such blocks pin what is left of them: a
                # quarter more than the weights, once the graph runtime has joined some and freed the parts.
                torch.cuda.empty_cache()
                model.set_submodule(path, make_linear(weight, bias))
                del weight
                torch.cuda.empty_cache()
                continue
            for name, parameter in list(module.named_parameters(recurse=False)):
                full = f"{path}.{name}" if path else name
                if config.tie_word_embeddings and full == "lm_head.weight":
                    continue
                module.register_parameter(name, nn.Parameter(tensor(full, parameter), requires_grad=False))
            _rebuild_rotary(module, request.device)
        model.tie_weights()
    return model.eval()


def _rebuild_rotary(module: nn.Module, device: str) -> None:
    """Rotary frequencies are computed, not stored: a module built on the meta device must compute them again."""
    import torch

    if hasattr(module, "inv_freq"):
        with torch.device(device):
            fresh = type(module)(config=module.config)
        for name, buffer in fresh.named_buffers(recurse=False):
            module.register_buffer(name, buffer, persistent=False)
        if hasattr(fresh, "original_inv_freq"):
            module.original_inv_freq = fresh.original_inv_freq
