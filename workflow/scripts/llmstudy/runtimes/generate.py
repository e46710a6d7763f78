"""The library's ``generate`` as its users call it: a dynamic KV cache, one kernel launch after the other."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from transformers import GenerationConfig, LogitsProcessor
from transformers.generation.streamers import BaseStreamer

from llmstudy.runtimes import PrepareInfo, Timeline


class TokenClock(BaseStreamer):
    """Record the time at which ``generate`` hands each token to the host; the first call hands over the prompt."""

    def __init__(self):
        self.stamps = []

    def put(self, value):
        self.stamps.append(time.perf_counter())

    def end(self):
        """Nothing to flush."""


def greedy(model, new_tokens: int) -> GenerationConfig:
    """Return the config for exactly ``new_tokens`` greedy tokens, and make it the model's.

    transformers fills what a config leaves at None from the model's own config, and a publisher's end of text, penalty
    or temperature would change how many tokens are timed, and which.
    """
    config = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0, use_cache=True
    )
    model.generation_config = config
    return config


class Forced(LogitsProcessor):
    """Let ``generate`` choose ``tokens`` [batch, new_tokens], whatever its logits, which go to ``take``."""

    def __init__(self, tokens: torch.Tensor, take: Callable[[int, torch.Tensor], None]):
        self.tokens, self.take, self.number = tokens, take, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.take(self.number, scores)
        forced = torch.full_like(scores, -torch.inf).scatter_(1, self.tokens[:, self.number, None], 0)
        self.number += 1
        return forced


class GenerateRuntime:
    """Greedy ``model.generate``; see ``runtimes.Runtime``."""

    def __init__(self, model, batch: int, prompt_tokens: int, new_tokens: int):
        self.model = model
        self.new_tokens = new_tokens

    def prepare(self) -> PrepareInfo:
        return PrepareInfo()

    def generate(self, input_ids: torch.Tensor) -> Timeline:
        clock = TokenClock()
        if input_ids.is_cuda:
            torch.cuda.synchronize(input_ids.device)
        start = time.perf_counter()
        output = self._call(input_ids, streamer=clock)
        tokens = output[:, input_ids.shape[1] :].cpu()
        return Timeline(tokens=tokens, token_s=[stamp - start for stamp in clock.stamps[1:]])

    def score(self, input_ids: torch.Tensor, tokens: torch.Tensor, take: Callable[[int, torch.Tensor], None]) -> None:
        """See ``runtimes.Runtime``."""
        self._call(input_ids, logits_processor=[Forced(tokens, take)])

    def config(self) -> GenerationConfig:
        """Return the library's settings, and make them the model's."""
        return greedy(self.model, self.new_tokens)

    def _call(self, input_ids: torch.Tensor, **options) -> torch.Tensor:
        """Return what the library's ``generate`` returns, int64 [batch, prompt_tokens + new_tokens]."""
        with torch.inference_mode():
            return self.model.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                generation_config=self.config(),
                **options,
            )

    def close(self) -> None:
        """Free nothing: the dynamic cache is freed with each call."""
