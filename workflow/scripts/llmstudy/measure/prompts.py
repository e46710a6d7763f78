"""Real text as token ids: prompts for latency and memory, token streams for quality."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmstudy.errors import StudyError

if TYPE_CHECKING:
    import torch

    from llmstudy.measure.session import Session

CALIBRATION_TOKENS = 512


def prompt_batch(session: Session, batch: int, prompt_tokens: int) -> torch.Tensor:
    """int64 [batch, prompt_tokens] on the device: every row begins with another document of the job's prompt corpus.

    A row whose document is too short goes on with the documents after it. Raises StudyError if the corpus has fewer
    documents than the batch has rows.
    """
    import torch

    name = session.job["prompt_corpus"]
    documents = session.corpus_documents(name)
    if len(documents) < batch:
        raise StudyError(f"corpus {name!r}: {len(documents)} documents for batch {batch}; every row needs its own")
    rows = []
    for row in range(batch):
        ids: list[int] = []
        for offset in range(len(documents)):
            # Tokenising a few characters more than needed is enough and keeps long documents cheap.
            text = documents[(row + offset) % len(documents)][: 12 * prompt_tokens]
            ids += encode(session, text)
            if len(ids) >= prompt_tokens:
                break
        else:
            raise StudyError(f"corpus {name!r}: only {len(ids)} tokens for a prompt of {prompt_tokens}")
        rows.append(ids[:prompt_tokens])
    return torch.tensor(rows, device=session.device)


def calibration_ids(session: Session) -> torch.Tensor:
    """int64 [1, ≤ CALIBRATION_TOKENS] on the CPU: the start of the last document of the job's prompt corpus.

    Perplexity is measured from the first document on, so unless a study takes the whole corpus the two do not meet.
    """
    import torch

    text = session.corpus_documents(session.job["prompt_corpus"])[-1]
    return torch.tensor([encode(session, text[: 12 * CALIBRATION_TOKENS])[:CALIBRATION_TOKENS]])


def encode(session: Session, text: str) -> list[int]:
    """Token ids without special tokens; synthetic models have no tokenizer: the text's UTF-8 bytes stand in."""
    tokenizer = session.weights.tokenizer
    if tokenizer is None:
        return list(text.encode("utf-8"))
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
