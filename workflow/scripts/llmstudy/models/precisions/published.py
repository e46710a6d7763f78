"""Checkpoints as they were published, through the library: whatever quantization their config.json names.

``as-published``      the model's own weights, in their stored dtype or quantization.
``as-published:<x>``  the checkpoint that the model's config calls x: a published quantization of the same model.
"""

from __future__ import annotations

import colorsys
import re
import zlib

from llmstudy.errors import StudyError, Unsupported
from llmstudy.models import loading
from llmstudy.models.precisions.base import LoadRequest, Precision
from llmstudy.models.precisions.llm_int8 import silence_bitsandbytes

NAME = re.compile(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*")  # becomes part of file names


def load(request: LoadRequest):
    """Return the model as the library loads it.

    Raises:
        Unsupported: the weights are random; or the library cannot run their quantization here.
    """
    if not request.weights.real:
        raise Unsupported("as-published: random weights were never published; take bf16")
    if quantization := getattr(request.weights.config(), "quantization_config", None):
        _require(quantization, request)
    silence_bitsandbytes()
    return loading.from_library(request, "auto")


def _require(quantization, request: LoadRequest) -> None:
    """Raise Unsupported, or ImportError that names a package, where the library cannot run a quantization: of a method
    that it does not know it would only warn, and load codes as if they were weights."""
    from transformers.quantizers.auto import AutoHfQuantizer

    try:
        quantizer = AutoHfQuantizer.from_config(quantization, pre_quantized=True)
        quantizer.validate_environment(device_map=request.device_map or {"": request.device}, weights_only=True)
    except ImportError:
        raise
    except Exception as error:
        raise Unsupported(f"as-published: {' '.join(str(error).split())}") from error


def member(text: str) -> Precision:
    """Return ``as-published:<text>``; ``text`` is the name of a checkpoint.

    Raises:
        StudyError: no checkpoint can have this name.
    """
    if not NAME.fullmatch(text):
        raise StudyError(
            f"precision 'as-published:{text}': {text!r} names no checkpoint; allowed: letters, digits, single hyphens"
        )
    return Precision(
        name=f"as-published:{text}",
        title=f"the published checkpoint {text}, through the library",
        family="published",
        weight_bits=16,  # at most: its file is not known yet
        compute_dtype="auto",
        load=load,
        color=_color(text),
        how=HOW,
        checkpoint=text,
    )


def _color(text: str) -> str:
    """A dark tone of a hue that depends on the name."""
    number = zlib.crc32(text.encode())
    tone = colorsys.hls_to_rgb((number % 360) / 360, 0.22 + (number >> 10) % 8 / 200, 0.45)
    return "#" + "".join(f"{round(255 * part):02x}" for part in tone)


HOW = 'AutoModelForCausalLM.from_pretrained(path, dtype="auto")'
PRECISIONS = {
    "as-published": Precision(
        name="as-published",
        title="the weights as they were published, through the library",
        # It is the original: beside it there are other precisions only if it is not quantized.
        family="dense",
        weight_bits=16,
        compute_dtype="auto",
        load=load,
        color="#4a4a2a",
        how=HOW,
    )
}
