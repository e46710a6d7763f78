"""The conventions in which a language model's loss is published, all from one total."""

import math
import re
from dataclasses import dataclass

from llmstudy.stats.estimate import exponential


@dataclass(frozen=True)
class Conventions:
    """One loss in every convention. Perplexities are pure numbers; `bits_per_byte` in bits per UTF-8 byte."""

    token_ppl: float
    word_ppl: float
    byte_ppl: float
    bits_per_byte: float


def count_words(text: str) -> int:
    """Words as lm-evaluation-harness counts them (`re.split(r"\\s+", text)`): leading and trailing space adds one
    each.

    Kept as it is there, so that `word_ppl` can be held against published numbers.
    """
    return len(re.split(r"\s+", text))


def count_bytes(text: str) -> int:
    """UTF-8 bytes of the text."""
    return len(text.encode("utf-8"))


def conventions(nll_sum: float, tokens: int, words: int, byte_count: int) -> Conventions:
    """Every convention of one total NLL.

    `nll_sum`: sum of NLL over the text in nats; `tokens`, `words`, `byte_count`: of that same text. With L =
    `nll_sum`: token PPL = exp(L / tokens), word PPL = exp(L / words), byte PPL = exp(L / bytes), bits per byte = L /
    (bytes ln 2) (lm-evaluation-harness, `word_perplexity`, `byte_perplexity`, `bits_per_byte`). Raises ValueError on
    a count below 1.
    """
    for name, count in (("tokens", tokens), ("words", words), ("byte_count", byte_count)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, not {count}")
    return Conventions(
        token_ppl=exponential(nll_sum / tokens),
        word_ppl=exponential(nll_sum / words),
        byte_ppl=exponential(nll_sum / byte_count),
        bits_per_byte=nll_sum / (byte_count * math.log(2)),
    )
