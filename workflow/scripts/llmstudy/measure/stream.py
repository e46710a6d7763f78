"""The text that quality is measured on: one stream of tokens that remembers its documents, and windows over it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmstudy.errors import StudyError
from llmstudy.stats.quality import count_bytes, count_words

if TYPE_CHECKING:
    from llmstudy.measure.session import Session


@dataclass(frozen=True)
class TokenStream:
    """Documents cut to length and joined in order.

    ids       int64 [n]
    document  int32 [n], which document a token belongs to, ascending from 0
    words, utf8_bytes  of the text that the ids stand for, for word and byte perplexity
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


def token_stream(session: Session, corpus: str) -> TokenStream:
    """The first ``tokens_per_document`` tokens of the first ``documents`` documents, ``max_tokens`` in all.

    A null limit means no limit. Documents are tokenised without special tokens and joined without a separator.
    Raises StudyError if nothing is left to score.
    """
    settings = session.settings
    texts = session.corpus_documents(corpus)[: settings["documents"]]
    tokenizer = session.weights.tokenizer
    ids: list[int] = []
    document: list[int] = []
    words = utf8_bytes = 0
    for number, text in enumerate(texts):
        room = settings["max_tokens"] - len(ids) if settings["max_tokens"] else None
        if room == 0:
            break
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        kept = encoded["input_ids"][: settings["tokens_per_document"]][:room]
        if not kept:
            continue
        cut = text[: encoded["offset_mapping"][len(kept) - 1][1]]
        words += count_words(cut)
        utf8_bytes += count_bytes(cut)
        ids += kept
        document += [number] * len(kept)
    if len(ids) < 2:
        raise StudyError(f"corpus {corpus!r}: {len(ids)} tokens are left to score; at least 2 are needed")
    return TokenStream(np.array(ids), np.array(document, dtype=np.int32), words, utf8_bytes)


def windows(tokens: int, window: int, stride: int) -> Iterator[Window]:
    """Windows that score each of the tokens 1 … tokens − 1 exactly once.

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
