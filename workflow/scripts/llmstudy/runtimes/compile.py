"""The library's ``generate`` with a static KV cache and its own compilation of the token step, as its guide says.

``cache_implementation="static"`` compiles the decode step with ``torch.compile`` (on a GPU in CUDA graphs too); the
prompt's pass stays as it is. What did not compile as a whole, or compiles again later, is refused: its times would be
those of another runtime.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch._dynamo.utils import counters
from transformers import CompileConfig, GenerationConfig

from llmstudy.errors import Unsupported, is_out_of_memory
from llmstudy.runtimes import PrepareInfo
from llmstudy.runtimes.generate import GenerateRuntime, greedy

# Compiled steps of one process: the models of a panel share the code of their class, and by default the ninth runs
# uncompiled without a word.
LIMIT = 256
# Steps until nothing is left to prepare: one compiles, the next ones warm up and record a CUDA graph.
WARM_STEPS = 4


class CompileRuntime(GenerateRuntime):
    """Greedy ``model.generate`` with a compiled step; see ``runtimes.Runtime``."""

    def __init__(self, model, batch: int, prompt_tokens: int, new_tokens: int):
        super().__init__(model, batch, prompt_tokens, new_tokens)
        self.shape = (batch, prompt_tokens)
        self.compiled = 0

    def prepare(self) -> PrepareInfo:
        """Compile the step. A single token needs none, as it comes from the prompt's pass."""
        begin, steps = time.perf_counter(), self.new_tokens - 1
        if not steps:
            return PrepareInfo()
        before = graphs()
        ids = torch.zeros(self.shape, dtype=torch.int64, device=self.model.device)
        try:
            with limits():
                for _ in range(-(-WARM_STEPS // steps)):
                    super()._call(ids)
        except (RuntimeError, FailOnRecompileLimitHit) as error:
            refused = isinstance(error, TorchDynamoException | FailOnRecompileLimitHit) or "torch.compile" in str(error)
            if is_out_of_memory(error) or not refused:
                raise
            reason = next(line for line in str(error).splitlines() if line.strip())
            raise Unsupported(f"the token step cannot be compiled: {reason.strip()}") from error
        self.compiled = graphs() - before
        if not self.compiled:
            raise Unsupported("transformers does not compile this precision; the step ran uncompiled")
        return PrepareInfo(compile_s=time.perf_counter() - begin)

    def config(self) -> GenerationConfig:
        """Return the library's settings. A whole graph or none, and sizes that are fixed: a second workload would make
        variables of those that differ from the first."""
        config = greedy(self.model, self.new_tokens)
        config.cache_implementation = "static"
        config.compile_config = CompileConfig(fullgraph=True, dynamic=False)
        # The library compiles on GPUs unless this is set; a version without it would not compile, which shows.
        config.compile_config._compile_all_devices = True
        return config

    def _call(self, input_ids: torch.Tensor, **options) -> torch.Tensor:
        before = graphs()
        with limits():
            output = super()._call(input_ids, **options)
        if graphs() != before:
            raise RuntimeError("the token step was compiled again during this call, whose times are no steady ones")
        return output

    def close(self) -> None:
        """Free the compiled step, of this model and of all others: those that go on compile again when prepared."""
        vars(self.model).pop("_compiled_call", None)
        if self.compiled:
            gc.collect()  # what is freed while torch resets would change what it iterates over
            torch.compiler.reset()


@contextmanager
def limits() -> Iterator[None]:
    """Let many models be compiled in one process, and raise where one would run uncompiled after all."""
    with torch._dynamo.config.patch(recompile_limit=LIMIT, fail_on_recompile_limit_hit=True):
        yield


def graphs() -> int:
    """Return how many graphs this process has compiled."""
    return counters["stats"]["unique_graphs"]
