"""One attention kernel alone, over context lengths: time, memory and error.

It is called through the library's attention function with the model's heads, so that repeating KV heads, masks and
copies cost here what they cost in the model. Inputs are standard normal in 16 bit, batch 1. ``prefill`` is causal
over n tokens; ``decode`` is one query row against n keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from llmstudy.errors import Unsupported
from llmstudy.llama import Shape
from llmstudy.measure.session import Session
from llmstudy.models import attention

SECONDS_PER_REPEAT = 0.05  # calls are repeated for so long between two readings of the clock
REFERENCE_ROWS = 256  # query rows whose fp32 scores exist at a time


@dataclass(frozen=True)
class Settings:
    """Context lengths in tokens, which may exceed the model's, and timings of each point."""

    contexts: tuple[int, ...]
    repeats: int


def measure(session: Session) -> dict:
    """Return ``{"heads", "kv_heads", "head_dim", "points": [{"context", "phase", "status", "reason", "time_ms": [one
    for each repeat], "extra_bytes", "max_abs_error", "kernels"}]}``."""
    settings = session.settings_as(Settings)
    operation = Operation(session)
    operation.require_package()
    results: dict = operation.shape | {"points": []}
    for context in settings.contexts:
        for phase in ("prefill", "decode"):
            with session.case(results, "points", context=context, phase=phase) as entry:
                entry |= operation.measure(context, phase == "decode", settings.repeats)
    return results


class Operation:
    """The attention of one model's layer in one kernel; ``shape`` has its numbers of heads and their width."""

    def __init__(self, session: Session):
        from transformers import LlamaConfig
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
        from transformers.models.llama.modeling_llama import LlamaAttention, eager_attention_forward

        self.session = session
        self.name = session.job.identity.attention
        implementation = attention.get(self.name).implementation
        model = Shape.of(session.weights.config())
        self.shape = {"heads": model.heads, "kv_heads": model.kv_heads, "head_dim": model.head_dim}
        config = LlamaConfig(
            hidden_size=model.heads * model.head_dim,
            num_attention_heads=model.heads,
            num_key_value_heads=model.kv_heads,
            head_dim=model.head_dim,
            attn_implementation=implementation,
        )
        with torch.device("meta"):  # its weights are not used
            self.module = LlamaAttention(config, layer_idx=0).eval()
        self.function = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        self.masked = implementation == "eager"

    def require_package(self) -> None:
        """Raise Unsupported if the kernel's package is not installed.

        Call it once, before all points: after a failed import the library may take the package for loaded.
        """
        try:
            self.call(*self.inputs(context=16, rows=1))
        except ImportError as error:
            raise Unsupported(f"attention {self.name!r}: {' '.join(str(error).split())}") from error
        except (RuntimeError, ValueError):
            pass  # a kernel that cannot serve these inputs may serve the configured ones

    def call(self, query, key, value, mask=None) -> torch.Tensor:
        """Return the library's attention, [1, rows, heads, head_dim]; causal if there are several query rows."""
        return self.function(
            self.module, query, key, value, mask, dropout=0.0, scaling=self.module.scaling, is_causal=query.shape[2] > 1
        )[0]

    def measure(self, context: int, decode: bool, repeats: int) -> dict:
        """Return the times, memory, error and kernels of one point.

        Raises:
            Unsupported: another kernel than the configured one ran.
            FloatingPointError: the output is not finite.
        """
        query, key, value = self.inputs(context, 1 if decode else context)
        mask = self.mask(context) if self.masked and not decode else None
        run = partial(self.call, query, key, value, mask)
        with torch.no_grad(), self.session.attention_forced():
            kernels = attention.prove(self.name, run)
            extra_bytes, output = self.peak(run)
            exact = reference(query, key, value, self.module.scaling)
            error = float((output.transpose(1, 2).float() - exact).abs().max())
            del output, exact
            if not math.isfinite(error):
                raise FloatingPointError("the kernel's output is not finite")
            times = self.times(run, repeats)
        return {"time_ms": times, "extra_bytes": extra_bytes, "max_abs_error": error, "kernels": kernels}

    def inputs(self, context: int, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return query [1, heads, rows, head_dim], key and value [1, KV heads, context, head_dim], bf16."""

        def normal(heads: int, length: int) -> torch.Tensor:
            drawn = torch.randn(1, heads, length, self.shape["head_dim"], device=self.session.device)
            return drawn.to(torch.bfloat16)

        kv_heads = self.shape["kv_heads"]
        return normal(self.shape["heads"], rows), normal(kv_heads, context), normal(kv_heads, context)

    def mask(self, context: int) -> torch.Tensor:
        """Return the additive causal mask of eager attention, bf16 [1, 1, context, context]."""
        low = torch.finfo(torch.bfloat16).min
        full = torch.full((context, context), low, dtype=torch.bfloat16, device=self.session.device)
        return full.triu_(1)[None, None]

    def peak(self, run: Callable[[], torch.Tensor]) -> tuple[int | None, torch.Tensor]:
        """Return (bytes that the call takes at its peak on top of its inputs, None on a CPU; its output)."""
        if self.session.device != "cuda":
            return None, run()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        output = run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before, output

    def times(self, run: Callable[[], object], repeats: int) -> list[float]:
        """Return the milliseconds of one call, one figure per repeat; many calls per repeat where one is short.

        On CUDA the call is captured once and replayed: calling it takes the host longer than a short context takes the
        device.
        """
        from torch.utils.benchmark import Timer

        if self.session.device == "cuda":
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                run()
            run = graph.replay
        timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
        calls = max(1, round(SECONDS_PER_REPEAT / timer.timeit(1).mean))
        return [1e3 * timer.timeit(calls).mean for _ in range(repeats)]


def reference(query, key, value, scaling: float) -> torch.Tensor:
    """Return textbook causal attention in fp32, [1, heads, rows, head_dim], computed a few query rows at a time.

    The last query row sees all keys. GQA: query head h reads KV head h // (heads / KV heads).
    """
    group = query.shape[1] // key.shape[1]
    key, value = (tensor.float().repeat_interleave(group, dim=1) for tensor in (key, value))
    rows, context = query.shape[2], key.shape[2]
    position = torch.arange(context, device=query.device)
    parts = []
    for first in range(0, rows, REFERENCE_ROWS):
        part = query[:, :, first : first + REFERENCE_ROWS].float()
        sees = position <= (context - rows + first + torch.arange(part.shape[2], device=query.device))[:, None]
        scores = (part @ key.transpose(2, 3) * scaling).masked_fill(~sees, float("-inf"))
        parts.append(scores.softmax(-1) @ value)
    return torch.cat(parts, dim=2)
