"""Text as token ids: prompts, calibration text, and the token stream that quality is measured on, with its windows."""

from __future__ import annotations

import json
import math
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
# Scripts whose words no space separates, and emoji: Thai, Lao, Tibetan, Burmese, Khmer, kana, Han.
UNSPACED = re.compile(
    "[\u0e01-\u0eff\u0f00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U0001f000-\U0003ffff]"
)
UNSPACED_SHARE = 0.1  # of the characters of a text, above which words are not counted
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
        words, utf8_bytes: of the text that the ids encode, for word and byte perplexity; None where they cannot be
            counted.
        uncounted: why, else empty.
    """

    ids: np.ndarray
    document: np.ndarray
    words: int | None
    utf8_bytes: int | None
    uncounted: str = ""


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
    tokenizer. Raise StudyError if a token has no row in the embedding."""
    tokenizer = session.weights.tokenizer
    if tokenizer is None:
        return require_rows(session, list(text.encode("utf-8")))
    return require_rows(session, tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def require_rows(session: Session, ids: list[int]) -> list[int]:
    """Return the token ids; raise StudyError for one that has no row in the embedding: tokens that were added without
    training the model for them, or the tokenizer of another model."""
    rows = session.weights.config().get_text_config().vocab_size
    if (largest := max(ids, default=0)) >= rows:
        tokenizer = session.weights.tokenizer
        name = f" ({tokenizer.convert_ids_to_tokens(largest)!r})" if tokenizer else ""
        raise StudyError(
            f"model {session.weights.name!r}: the text contains token {largest}{name}, but the embedding has {rows} "
            "rows; take the tokenizer of these weights, or a text without it"
        )
    return ids


@dataclass(frozen=True)
class Beginning:
    """The token that every window begins with, None for no such token, and the one that the tokenizer adds by itself;
    ``id`` is that of ``token``."""

    id: int | None
    token: str | None
    habit: str | None


def beginning_of(session: Session, bos: bool | None) -> Beginning:
    """Return how windows begin: with the beginning-of-text token, without, or (None) as the tokenizer does by itself.

    The token is the tokenizer's own: config.json of a fine-tune often names another. Raise StudyError if there is none.
    """
    tokenizer = session.weights.tokenizer
    plain, usual = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    habit = usual[0] if usual[0] != plain[0] else None
    own = habit if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if bos and own is None:
        raise StudyError(
            f"quality.bos: true, but the tokenizer of model {session.weights.name!r} has no beginning-of-text token; "
            "allowed: null, false"
        )
    used = habit if bos is None else own if bos else None
    if used is not None:
        require_rows(session, [used])
    token, usual_token = (None if one is None else tokenizer.convert_ids_to_tokens(one) for one in (used, habit))
    return Beginning(used, token, usual_token)


def prompt_batch(session: Session, batch: int, prompt_tokens: int) -> torch.Tensor:
    """Return prompts, int64 [batch, prompt_tokens] on the device; each begins with another document of the job's prompt
    corpus, and continues with the documents after it where that one is too short. Where there are fewer documents than
    rows, they begin at places of each that are equally far apart. Raise StudyError if the corpus has too little text.
    """
    corpus = session.job.prompt_corpus
    documents = documents_of(session, corpus)
    places = math.ceil(batch / len(documents))
    rows = []
    for row in range(batch):
        ids: list[int] = []
        place, number = divmod(row, len(documents))
        first = documents[number]
        start = len(first) * place // places
        for text in [first[start:], *documents[number + 1 :], *documents[:number], first[:start]]:
            ids += encode(session, text[: CHARACTERS * prompt_tokens])
            if len(ids) >= prompt_tokens:
                break
        else:
            raise StudyError(f"corpus {corpus!r}: only {len(ids)} tokens for a prompt of {prompt_tokens}")
        rows.append(ids[:prompt_tokens])
    return torch.tensor(rows, device=session.device)


def calibration_ids(session: Session) -> torch.Tensor:
    """Return the end of the job's prompt corpus, int64 [≤ CALIBRATION_ROWS, ≤ CALIBRATION_TOKENS] on the CPU: the end
    of the last document, then of the one before it, in rows of equal length.

    Perplexity is measured from the start of the corpus on, which may be a single document, so the two do not overlap
    unless a study reads all of it.
    """
    wanted, ids = CALIBRATION_ROWS * CALIBRATION_TOKENS, []
    for text in reversed(documents_of(session, session.job.prompt_corpus)):
        left = wanted - len(ids)
        ids += encode(session, text[-CHARACTERS * left :])[-left:]
        if len(ids) == wanted:
            break
    length = min(len(ids), CALIBRATION_TOKENS)
    return torch.tensor(ids[: len(ids) // length * length]).view(-1, length)


def token_stream(session: Session, corpus: str, excerpt: Excerpt) -> TokenStream:
    """Return the excerpt of a corpus; documents are tokenized without special tokens and joined without a separator.
    Raise StudyError if fewer than two tokens are left, so none can be scored."""
    ids: list[int] = []
    document: list[int] = []
    texts: list[str | None] = []
    for number, text in enumerate(documents_of(session, corpus)[: excerpt.documents]):
        room = excerpt.max_tokens - len(ids) if excerpt.max_tokens else None
        if room == 0:
            break
        encoded = encode(session, text)
        kept, cut = encoded[: excerpt.tokens_per_document][:room], text
        if len(kept) < len(encoded):
            kept, cut = whole_characters(session.weights.tokenizer, kept, text)
        if not kept:
            continue
        texts.append(cut)
        ids += kept
        document += [number] * len(kept)
    if len(ids) < 2:
        raise StudyError(f"corpus {corpus!r}: {len(ids)} tokens are left to score; at least 2 are needed")
    return TokenStream(np.array(ids), np.array(document, dtype=np.int32), *sizes_of(texts))


def whole_characters(tokenizer, ids: list[int], text: str) -> tuple[list[int], str | None]:
    """Return the first tokens of a text without those that end inside a character (three at most, a character has four
    bytes), and the text that they encode: None if the tokenizer does not give it back.

    Not from the tokenizer's offsets: slow tokenizers have none, and those of byte-level ones leave out spaces.
    """
    for end in range(len(ids), max(-1, len(ids) - 4), -1):
        if (decoded := text_of(tokenizer, ids[:end], text)) is not None:
            return ids[:end], decoded
    return ids, None


def text_of(tokenizer, ids: list[int], text: str) -> str | None:
    """Return the beginning of a text that its first tokens encode; None if they end inside a character, or the
    tokenizer does not give the text back."""
    decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return decoded if text.startswith(decoded) else None


def sizes_of(texts: list[str | None]) -> tuple[int | None, int | None, str]:
    """Return the words and UTF-8 bytes of some texts, None where they cannot be counted, and why."""
    known = [text for text in texts if text is not None]
    if len(known) < len(texts):
        lost = len(texts) - len(known)
        return None, None, f"words, bytes: of {lost} documents that are cut, the tokens do not give back the text"
    utf8_bytes = sum(len(text.encode("utf-8")) for text in known)
    unspaced = sum(len(UNSPACED.findall(text)) for text in known)
    if unspaced > UNSPACED_SHARE * sum(len("".join(text.split())) for text in known):
        return None, utf8_bytes, "words: no spaces between them in this script"
    # as lm-evaluation-harness counts, for comparable word perplexities
    return sum(len(re.split(r"\s+", text)) for text in known), utf8_bytes, ""


def openings(session: Session, corpus: str, documents: int, tokens: int, scored: int) -> TokenStream:
    """Return the first ``tokens`` tokens of each of the first ``documents`` documents that are that long, joined;
    ``document``, words and bytes are those of the last ``scored`` tokens of each. Raise StudyError if there are fewer
    such documents."""
    tokenizer = session.weights.tokenizer
    ids: list[int] = []
    texts: list[str | None] = []
    for text in documents_of(session, corpus):
        kept = encode(session, text[: CHARACTERS * tokens])[:tokens]
        if len(kept) < tokens:
            continue
        before, whole = (text_of(tokenizer, kept[:end], text) for end in (tokens - scored, tokens))
        texts.append(None if before is None or whole is None else whole[len(before) :])
        ids += kept
        if len(texts) == documents:
            document = np.repeat(np.arange(documents, dtype=np.int32), scored)
            return TokenStream(np.array(ids), document, *sizes_of(texts))
    raise StudyError(
        f"corpus {corpus!r}: {len(texts)} documents have {tokens} tokens; quality.decode.prompts wants {documents} of "
        "them"
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
