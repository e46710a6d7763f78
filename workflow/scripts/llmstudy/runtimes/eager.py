"""The library's ``generate`` as its users call it, one kernel launch after the other."""

from __future__ import annotations

import time

from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from llmstudy.runtimes.base import PrepareInfo, Timeline


class TokenClock(BaseStreamer):
    """Stamps every token as ``generate`` hands it to the host; the first call hands over the prompt."""

    def __init__(self):
        self.stamps = []

    def put(self, value):
        self.stamps.append(time.perf_counter())

    def end(self):
        """Nothing to flush."""


class EagerRuntime:
    """Greedy ``model.generate`` with a dynamic KV cache."""

    def __init__(self, model, batch: int, prompt_tokens: int, new_tokens: int):
        self.model = model
        self.new_tokens = new_tokens
        # No end-of-text token: every run yields the same number of tokens.
        self.generation = GenerationConfig(
            max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0, use_cache=True
        )

    def prepare(self) -> PrepareInfo:
        return PrepareInfo()

    def generate(self, input_ids) -> Timeline:
        import torch

        clock = TokenClock()
        if input_ids.is_cuda:
            torch.cuda.synchronize(input_ids.device)
        start = time.perf_counter()
        with torch.inference_mode():
            output = self.model.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                generation_config=self.generation,
                streamer=clock,
            )
        tokens = output[:, input_ids.shape[1] :].cpu()
        return Timeline(tokens=tokens, token_s=[stamp - start for stamp in clock.stamps[1:]])

    def close(self) -> None:
        """The dynamic cache went with the call."""
