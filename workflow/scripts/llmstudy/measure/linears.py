"""The linears of a LLaMA decoder, by layer and name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmstudy.measure.footprint import component_of

if TYPE_CHECKING:
    from torch import nn

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


@dataclass(frozen=True)
class DecoderLinear:
    """``name`` is the last part of the path: ``q_proj`` … ``down_proj``."""

    layer: int
    name: str
    module: nn.Module


def decoder_linears(model: nn.Module) -> Iterator[DecoderLinear]:
    """Every linear inside the decoder layers, in forward order: those that a precision stores in its own way."""
    for path, module in model.named_modules():
        if component_of(path, module) == "linears":
            yield DecoderLinear(int(_LAYER.search(path)[1]), path.rsplit(".", 1)[-1], module)
