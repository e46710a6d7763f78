"""The runtime ``graph``: a static KV cache and a token step without launch overhead.

On CUDA prefill and decode step are captured graphs of this project's kernels; on a CPU the same layer runs as a plain
loop. ``layer.py`` has the decoder layer, ``kernels/README.md`` says which operations it is run with and why.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from llmstudy.runtimes import PrepareInfo, Timeline
from llmstudy.runtimes.graph.plain import CpuEngine
from llmstudy.runtimes.graph.weights import extract


class GraphRuntime:
    """One workload on one model of ``weights.ARCHITECTURES``; see ``runtimes.Runtime``.

    ``prepare`` raises ``Unsupported`` where the model's architecture or its linear layers cannot take part.
    """

    def __init__(self, model, batch: int, prompt_tokens: int, new_tokens: int):
        self.model = model
        self.shape = (batch, prompt_tokens, new_tokens)
        self.engine = None

    def prepare(self) -> PrepareInfo:
        begin = time.perf_counter()
        weights = extract(self.model)
        if weights.device.type == "cuda":
            from llmstudy.runtimes.graph.cuda import CudaEngine

            self.engine = CudaEngine(weights, *self.shape)
            self.engine.capture()
        else:
            self.engine = CpuEngine(weights, *self.shape)
        return PrepareInfo(compile_s=time.perf_counter() - begin)

    def generate(self, input_ids: torch.Tensor) -> Timeline:
        """Generate after ``input_ids``, int64 [batch, prompt_tokens] on the model's device."""
        self._check(input_ids)
        with torch.inference_mode():
            return self.engine.generate(input_ids)

    def score(self, input_ids: torch.Tensor, tokens: torch.Tensor, take: Callable[[int, torch.Tensor], None]) -> None:
        """See ``runtimes.Runtime``."""
        self._check(input_ids)
        with torch.inference_mode():
            self.engine.score(input_ids, tokens, take)

    def _check(self, input_ids: torch.Tensor) -> None:
        if tuple(input_ids.shape) != self.shape[:2]:
            raise ValueError(f"input_ids {tuple(input_ids.shape)}: this runtime was prepared for {self.shape[:2]}")

    def close(self) -> None:
        self.engine = None
        torch.cuda.empty_cache()
