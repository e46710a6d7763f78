"""The token loop on CUDA: prefill and decode step as captured graphs, time stamps from events on the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from llmstudy.errors import Unsupported
from llmstudy.runtimes import Timeline
from llmstudy.runtimes.graph.layer import last_logits
from llmstudy.runtimes.graph.prompt import Prompt
from llmstudy.runtimes.graph.step import DecodeStep
from llmstudy.runtimes.graph.weights import LlamaWeights


class CudaEngine:
    """Greedy generation of a fixed shape; after ``capture`` the host only replays two graphs and records events."""

    def __init__(self, weights: LlamaWeights, batch: int, prompt_tokens: int, new_tokens: int):
        self.weights = weights
        self.step = DecodeStep(weights, batch, prompt_tokens, new_tokens)
        self.prompt = Prompt(weights, self.step.cache, self.step.cos, self.step.sin)
        self.ids = torch.zeros(batch, prompt_tokens, dtype=torch.int64, device=weights.device)
        self.prefill_graph, self.step_graph = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        self.events = [torch.cuda.Event(enable_timing=True) for _ in range(new_tokens + 1)]

    @property
    def logits(self) -> torch.Tensor:
        """[batch, vocabulary], from which the last token was taken."""
        return self.step.logits

    def capture(self) -> None:
        """Compile every kernel by running once, then capture; raise ``Unsupported`` if a projection cannot be."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.inference_mode():
            self._prefill()
            if self.step.new_tokens > 1:
                self.step.run()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        try:
            with torch.inference_mode():
                with torch.cuda.graph(self.prefill_graph):
                    self._prefill()
                if self.step.new_tokens > 1:
                    with torch.cuda.graph(self.step_graph, pool=self.prefill_graph.pool()):
                        self.step.run()
        except RuntimeError as error:
            if isinstance(error, torch.cuda.OutOfMemoryError) or self.weights.fused:
                raise
            reason = str(error).splitlines()[0]
            raise Unsupported(f"a linear of this precision cannot be captured in a CUDA graph: {reason}") from error

    def generate(self, input_ids: torch.Tensor) -> Timeline:
        """See ``runtimes.Runtime``. Nothing waits for the device until all launches are queued."""
        torch.cuda.synchronize()
        start, *ready = self.events
        start.record()
        self.ids.copy_(input_ids)
        self.prefill_graph.replay()
        ready[0].record()
        for event in ready[1:]:
            self.step_graph.replay()
            event.record()
        ready[-1].synchronize()
        return Timeline(tokens=self.step.tokens.cpu(), token_s=[start.elapsed_time(event) / 1000 for event in ready])

    def score(self, input_ids: torch.Tensor, tokens: torch.Tensor, take: Callable[[int, torch.Tensor], None]) -> None:
        """See ``runtimes.Runtime``: the same two graphs, with the embedding of the next token replaced between them."""
        self.ids.copy_(input_ids)
        self.prefill_graph.replay()
        take(0, self.logits)
        for number in range(1, self.step.new_tokens):
            self.step.x.copy_(functional.embedding(tokens[:, number - 1], self.weights.embedding))
            self.step_graph.replay()
            take(number, self.logits)

    def _prefill(self) -> None:
        step = self.step
        step.position.fill_(step.prompt_tokens - 1)
        step.logits.copy_(last_logits(self.weights, self.prompt.run(self.ids)))
        step.sample()
