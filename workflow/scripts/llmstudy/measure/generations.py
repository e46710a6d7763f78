"""Generated text: greedy continuations of the study's prompts, to be read beside the reference's."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llmstudy.measure.scoring import finite_logits
from llmstudy.measure.session import Session, log
from llmstudy.measure.text import require_rows
from llmstudy.runtimes.generate import greedy


@dataclass(frozen=True)
class Settings:
    """The prompts, and the number of tokens that follow each."""

    prompts: tuple[str, ...]
    new_tokens: int


def measure(session: Session) -> dict:
    """Return ``{"prompts": [{"prompt", "text", "tokens"}]}``; ``tokens`` are the ids of ``text``. A prompt begins as
    the tokenizer begins a text."""
    settings = session.settings_as(Settings)
    tokenizer = session.weights.tokenizer
    model, _ = session.load_model()
    generation = greedy(model, settings.new_tokens)
    results: dict = {"prompts": []}
    for number, prompt in enumerate(settings.prompts, 1):
        inputs = tokenizer(prompt, return_tensors="pt").to(session.device)
        require_rows(session, inputs["input_ids"][0].tolist())
        with torch.inference_mode(), session.attention_forced(), finite_logits(model):
            output = model.generate(
                inputs["input_ids"], attention_mask=inputs["attention_mask"], generation_config=generation
            )
        tokens = output[0, inputs["input_ids"].shape[1] :].tolist()
        results["prompts"].append({"prompt": prompt, "text": tokenizer.decode(tokens), "tokens": tokens})
        session.save(results)
        log(f"prompt {number}/{len(settings.prompts)}")
    return results
