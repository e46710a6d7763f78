"""Samples: greedy continuations of the study's prompts, to be read beside the reference's."""

from __future__ import annotations

from llmstudy.measure.session import Session, log
from llmstudy.runtimes.generate import greedy


def measure(session: Session) -> dict:
    """``{"prompts": [{"prompt", "text", "tokens"}]}``: greedy, the configured number of new tokens each."""
    import torch

    tokenizer = session.weights.tokenizer
    model, _ = session.load_model()
    generation = greedy(model, session.settings["new_tokens"])
    results: dict = {"prompts": []}
    for number, prompt in enumerate(session.settings["prompts"], 1):
        inputs = tokenizer(prompt, return_tensors="pt").to(session.device)
        with torch.inference_mode(), session.attention_forced():
            output = model.generate(
                inputs["input_ids"], attention_mask=inputs["attention_mask"], generation_config=generation
            )
        tokens = output[0, inputs["input_ids"].shape[1] :].tolist()
        results["prompts"].append({"prompt": prompt, "text": tokenizer.decode(tokens), "tokens": tokens})
        session.save(results)
        log(f"prompt {number}/{len(session.settings['prompts'])}")
    return results
