"""Text as token ids: prompts, calibration text, and the token stream that quality is measured on, with its windows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from llmstudy.errors import StudyError

if TYPE_CHECKING:
    from llmstudy.measure.session import Session

CALIBRATION_TOKENS = 512
CALIBRATION_ROWS = 8
CHARACTERS = 12  # more than a token has: the first 12 n characters of a text are tokenized for n tokens


@dataclass(frozen=True)
class Excerpt:
    """The part of a corpus that is read; None sets no limit.

    Attributes:
        documents: documents from the start of the corpus.
        tokens_per_document: tokens from the start of each document.
        max_tokens: tokens in all.
    """

    documents: int | None
    tokens_per_document: int | None
    max_tokens: int | None


@dataclass(frozen=True)
class TokenStream:
    """Documents cut to length and joined in order.

    Attributes:
        ids: int64 [n].
        document: int32 [n], the number of the document that each token is from, ascending from 0.
        words, utf8_bytes: of the text that the ids encode, for word and byte perplexity.
    """

    ids: np.ndarray
    document: np.ndarray
    words: int
    utf8_bytes: int


@dataclass(frozen=True)
class Window:
    """Tokens [begin, end) are the input; the last ``scored`` positions predict tokens (end − scored, end]."""

    begin: int
    end: int
    scored: int


def documents_of(session: Session, corpus: str) -> list[str]:
    """Return the documents of a fetched corpus of the job, in order. Raise StudyError if the corpus was not fetched."""
    path = Path(session.job.corpora[corpus]) / "text.jsonl"
    if not path.exists():
        raise StudyError(f"{path}: missing; fetch it where there is a network: snakemake --cores 1 {path}")
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def encode(session: Session, text: str) -> list[int]:
    """Return the token ids of a text without special tokens; its UTF-8 bytes for random weights, which have no
    tokenizer."""
    tokenizer = session.weights.tokenizer
    if tokenizer is None:
        return list(text.encode("utf-8"))
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def prompt_batch(session: Session, batch: int, prompt_tokens: int) -> torch.Tensor:
    """Return prompts, int64 [batch, prompt_tokens] on the device; each begins with another document of the job's prompt
    corpus, and continues with the documents after it where that one is too short. Raise StudyError if the corpus has
    fewer documents than the batch has rows, or too little text."""
    corpus = session.job.prompt_corpus
    documents = documents_of(session, corpus)
    if len(documents) < batch:
        raise StudyError(f"corpus {corpus!r}: {len(documents)} documents for batch {batch}; every row needs its own")
    rows = []
    for row in range(batch):
        ids: list[int] = []
        for text in documents[row:] + documents[:row]:
            ids += encode(session, text[: CHARACTERS * prompt_tokens])
            if len(ids) >= prompt_tokens:
                break
        else:
            raise StudyError(f"corpus {corpus!r}: only {len(ids)} tokens for a prompt of {prompt_tokens}")
        rows.append(ids[:prompt_tokens])
    return torch.tensor(rows, device=session.device)


def calibration_ids(session: Session) -> torch.Tensor:
    """Return the end of the job's prompt corpus, int64 [≤ CALIBRATION_ROWS, ≤ CALIBRATION_TOKENS] on the CPU: the last
    document from its start, then the one before it, in rows of equal length.

    Perplexity is measured from the first document on, so the two do not overlap unless a study reads the whole corpus.
    """
    wanted, ids = CALIBRATION_ROWS * CALIBRATION_TOKENS, []
    for text in reversed(documents_of(session, session.job.prompt_corpus)):
        ids += encode(session, text[: CHARACTERS * (wanted - len(ids))])[: wanted - len(ids)]
        if len(ids) == wanted:
            break
    length = min(len(ids), CALIBRATION_TOKENS)
    return torch.tensor(ids[: len(ids) // length * length]).view(-1, length)


def token_stream(session: Session, corpus: str, excerpt: Excerpt) -> TokenStream:
    """Return the excerpt of a corpus; documents are tokenized without special tokens and joined without a separator.
    Raise StudyError if fewer than two tokens are left, so none can be scored."""
    tokenizer = session.weights.tokenizer
    ids: list[int] = []
    document: list[int] = []
    words = utf8_bytes = 0
    for number, text in enumerate(documents_of(session, corpus)[: excerpt.documents]):
        room = excerpt.max_tokens - len(ids) if excerpt.max_tokens else None
        if room == 0:
            break
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        kept = encoded["input_ids"][: excerpt.tokens_per_document][:room]
        if not kept:
            continue
        cut = text[: encoded["offset_mapping"][len(kept) - 1][1]]
        words += len(re.split(r"\s+", cut))  # as lm-evaluation-harness counts, for comparable word perplexities
        utf8_bytes += len(cut.encode("utf-8"))
        ids += kept
        document += [number] * len(kept)
    if len(ids) < 2:
        raise StudyError(f"corpus {corpus!r}: {len(ids)} tokens are left to score; at least 2 are needed")
    return TokenStream(np.array(ids), np.array(document, dtype=np.int32), words, utf8_bytes)


def openings(session: Session, corpus: str, documents: int, tokens: int, scored: int) -> TokenStream:
    """Return the first ``tokens`` tokens of each of the first ``documents`` documents that are that long, joined;
    ``document``, words and bytes are those of the last ``scored`` tokens of each. Raise StudyError if there are fewer
    such documents."""
    ids: list[int] = []
    words = utf8_bytes = found = 0
    for text in documents_of(session, corpus):
        encoded = session.weights.tokenizer(
            text[: CHARACTERS * tokens], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        if len(encoded["input_ids"]) < tokens:
            continue
        first, last = (encoded["offset_mapping"][place] for place in (tokens - scored, tokens - 1))
        cut = text[first[0] : last[1]]
        words += len(re.split(r"\s+", cut.strip()))
        utf8_bytes += len(cut.encode("utf-8"))
        ids += encoded["input_ids"][:tokens]
        found += 1
        if found == documents:
            document = np.repeat(np.arange(documents, dtype=np.int32), scored)
            return TokenStream(np.array(ids), document, words, utf8_bytes)
    raise StudyError(
        f"corpus {corpus!r}: {found} documents have {tokens} tokens; quality.decode.prompts wants {documents} of them"
    )


def windows(tokens: int, window: int, stride: int) -> Iterator[Window]:
    """Yield windows that score each of the tokens 1 … tokens − 1 exactly once.

    A window of ``window`` input tokens predicts the token after each of its last positions that no window before it
    predicted, so with ``stride`` = ``window`` they are disjoint and with a smaller stride every token after the first
    window has at least ``window − stride`` tokens of context.
    """
    scored_up_to = 0  # index of the last token that has been predicted
    begin = 0
    while scored_up_to < tokens - 1:
        end = min(begin + window, tokens - 1)
        yield Window(begin, end, end - scored_up_to)
        scored_up_to = end
        begin += stride
