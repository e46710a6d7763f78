"""Two ways to load a model onto its device: through the library, or parameter by parameter.

Users run the library's ``from_pretrained``, so real weights go through it wherever it knows the precision.
``layer_by_layer`` is for what it cannot do: synthetic weights, which are never written to disk, and precisions of this
project. Its peak is the finished model and one 16-bit layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llmstudy.errors import StudyError, Unsupported
from llmstudy.models.precisions.base import LoadRequest

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

MakeLinear = Callable[["torch.Tensor", "torch.Tensor | None"], "nn.Module"]


def from_library(request: LoadRequest, dtype: torch.dtype, **options: Any) -> PreTrainedModel:
    """Return the model of ``from_pretrained``, to which ``options`` go (``quantization_config``).

    Raises:
        StudyError: the files lack a tensor, or hold one in another shape, which the library would draw at random.
        Unsupported: the model's class does not support the attention.
    """
    from transformers import AutoModelForCausalLM

    _check_attention(request)
    device_map = request.device_map or {"": request.device}
    model, info = AutoModelForCausalLM.from_pretrained(
        request.weights.folder,
        config=request.weights.config(),
        dtype=dtype,
        attn_implementation=request.attention,
        device_map=device_map,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        **options,
    )
    wrong = sorted(info["missing_keys"]) + sorted(name for name, *_ in info["mismatched_keys"])
    if wrong:
        raise StudyError(
            f"{request.weights.folder}: {wrong[0]} is missing or has another shape than the model ({len(wrong)} such), "
            "and the library would draw it at random; fetch the model again"
        )
    return model.eval()


def _check_attention(request: LoadRequest) -> None:
    supported = request.weights.attention
    if supported and request.attention not in supported:
        raise Unsupported(
            f"attention {request.attention!r}: this model's class does not support it; allowed: {', '.join(supported)}"
        )


def layer_by_layer(request: LoadRequest, dtype: torch.dtype, make_linear: MakeLinear | None = None) -> PreTrainedModel:
    """Return the model, built on the meta device and filled one parameter at a time.

    Args:
        request: what to load.
        dtype: dtype of embeddings, norms and head, which bitsandbytes does not quantize either, and of dense weights.
        make_linear: makes the module that replaces a decoder linear, from its weight [out, in] and its bias, [out] or
            None, on the device; without it the linear layers stay dense.

    Raises:
        Unsupported: the request spreads the model over several devices.
    """
    import torch
    from accelerate import init_empty_weights
    from torch import nn
    from transformers import AutoModelForCausalLM

    _check_attention(request)
    if request.device_map:
        size = torch.cuda.get_device_properties(0).total_memory / 1e9
        raise Unsupported(f"does not fit one GPU of {size:.0f} GB; this precision cannot be split")
    # Buffers, which no file stores (frequencies of the rotary embedding, Gemma's scale), are computed on the device.
    with torch.device(request.device), init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(
            request.weights.config(), dtype=dtype, attn_implementation=request.attention
        )
    head, tied = model.get_output_embeddings(), model.all_tied_weights_keys

    def tensor(name: str, like: torch.Tensor) -> torch.Tensor:
        return request.weights.tensor(name, tuple(like.shape), dtype, request.device)

    with torch.no_grad():
        for path, module in list(model.named_modules()):
            if make_linear and isinstance(module, nn.Linear) and module is not head:
                weight = tensor(f"{path}.weight", module.weight)
                bias = None if module.bias is None else tensor(f"{path}.bias", module.bias)
                # Memory that drawing used is given back before the quantized weight is allocated, and that of the
                # 16-bit weight before the next one is. A quantized weight that the allocator cuts out of such a block
                # pins the rest of it: a quarter more than the weights, once the graph runtime has joined some and
                # freed the parts.
                torch.cuda.empty_cache()
                model.set_submodule(path, make_linear(weight, bias))
                del weight
                torch.cuda.empty_cache()
                continue
            for name, parameter in list(module.named_parameters(recurse=False)):
                full = f"{path}.{name}" if path else name
                if full not in tied:
                    module.register_parameter(name, nn.Parameter(tensor(full, parameter), requires_grad=False))
        model.tie_weights()
    return model.eval()
