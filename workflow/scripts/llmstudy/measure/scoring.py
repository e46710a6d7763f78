"""Log-probabilities of a model over the windows of a token stream, in fp32 whatever the model computes in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch

from llmstudy import llama
from llmstudy.errors import StudyError
from llmstudy.measure.session import Session, trim_heap
from llmstudy.measure.text import TokenStream, openings, windows
from llmstudy.progress import progress
from llmstudy.runner.job import Workload

# Called with what ``score`` yields.
Take = Callable[[slice, torch.Tensor, torch.Tensor], None]

# Rows of [rows, vocabulary] fp32 log-probabilities that exist at a time. On a CPU larger temporaries are mapped afresh
# by the allocator each time, which costs more than the arithmetic; a GPU wants enough work per launch.
ROWS = {"cpu": 32, "cuda": 512}


@dataclass(frozen=True)
class Protocol:
    """The windows that a text is cut into: ``window`` input tokens, of which each begins ``stride`` after the last."""

    window: int
    stride: int

    def name(self, bos: bool) -> str:
        """Return the label in records and tables."""
        return llama.protocol_name(asdict(self), bos)


@dataclass(frozen=True)
class Decode:
    """Forced tokens: text that a runtime is made to generate, so that its token step is scored.

    ``new_tokens`` after each of ``prompts`` prompts of ``prompt_tokens`` tokens; for each of ``batches``, in batches of
    that size, and for batch 0 in one pass over each text. Every new token but the first is scored, which comes from the
    prompt's pass.
    """

    batches: tuple[int, ...]
    prompts: int
    prompt_tokens: int
    new_tokens: int

    @property
    def scored(self) -> int:
        """Return the scored tokens of a prompt."""
        return self.new_tokens - 1

    @property
    def tokens(self) -> int:
        """Return the scored tokens in all."""
        return self.prompts * self.scored

    def name(self, bos: bool, batch: int) -> str:
        """Return the label in records and tables, for a batch size; for 0 that of one pass over the same text."""
        return llama.protocol_name(asdict(self) | {"batch": batch}, bos)

    def text(self, session: Session, corpus: str, bos: bool) -> tuple[torch.Tensor, TokenStream]:
        """Return (ids int64 [prompts, prompt_tokens + new_tokens] on the device, the scored text); ``bos``: a prompt
        begins with the beginning-of-text token and has one real token less."""
        start_id = bos_token(session, bos)
        stream = openings(session, corpus, self.prompts, self.prompt_tokens + self.new_tokens - bos, self.scored)
        ids = torch.from_numpy(stream.ids.reshape(self.prompts, -1)).to(session.device)
        start = torch.full((self.prompts, int(bos)), start_id or 0, dtype=ids.dtype, device=session.device)
        return torch.cat([start, ids], dim=1), stream

    def score(
        self, session: Session, model, ids: torch.Tensor, batch: int, take: Take, until: int | None = None
    ) -> None:
        """Give ``take`` what the job's runtime predicts while it decodes ``ids``, in an order that ``in_text_order``
        undoes; for ``batch`` 0 what one forward pass of the library over each text predicts, in the order of the text.
        All of it, whatever ``until``."""
        if not batch:
            for number, row in enumerate(ids):
                with torch.no_grad(), session.attention_forced():
                    logits = model(row[None, :-1], use_cache=False, logits_to_keep=self.scored).logits[0]
                positions = slice(number * self.scored, (number + 1) * self.scored)
                take(positions, torch.log_softmax(logits.float(), dim=-1), row[-self.scored :])
            return
        done = 0

        def step(number: int, logits: torch.Tensor) -> None:
            nonlocal done
            if number:
                positions, done = slice(done, done + batch), done + batch
                take(positions, torch.log_softmax(logits.float(), dim=-1), tokens[:, number])

        with session.runtime(model, Workload(batch, self.prompt_tokens, self.new_tokens)) as runtime:
            runtime.prepare()
            parts = ids.split(batch)
            for part in progress(parts, what="batches decoded", total=len(parts), unit="batch"):
                tokens = part[:, self.prompt_tokens :]
                runtime.score(part[:, : self.prompt_tokens], tokens, step)

    def in_text_order(self, values: np.ndarray, batch: int) -> np.ndarray:
        """Return what was scored [batches × steps × batch] in the order of the text, prompt after prompt."""
        return values.reshape(-1, self.scored, batch).swapaxes(1, 2).reshape(-1)


def bos_token(session: Session, bos: bool) -> int | None:
    """Return the beginning-of-text token. Raise StudyError if ``bos``, and the model has none."""
    start_id = session.weights.config().bos_token_id
    if bos and start_id is None:
        raise StudyError(
            f"quality.bos: true, but the config of model {session.weights.name!r} has no bos_token_id; allowed: false"
        )
    return start_id


def score(
    session: Session, model, stream: TokenStream, protocol: Protocol, bos: bool
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Yield (positions, log_probabilities fp32 [rows, vocabulary], targets int64 [rows]) in stream order.

    ``positions`` counts scored tokens from 0: token 1 of the stream is position 0. With ``bos`` every window begins
    with the beginning-of-text token and one real token less of context. Raise StudyError if ``bos``, and the model has
    no such token.
    """
    start_id, rows = bos_token(session, bos), ROWS[session.device]
    ids = torch.from_numpy(stream.ids).to(session.device)
    start = torch.tensor([start_id] * bos, dtype=ids.dtype, device=session.device)
    width = protocol.window - bos
    plan = list(windows(len(ids), width, min(protocol.stride, width)))
    for window in progress(plan, what="windows scored", total=len(plan), unit="window"):
        inputs = torch.cat([start, ids[window.begin : window.end]])
        # Not inference_mode around a yield: grad mode is per thread and would leak into the caller.
        with torch.no_grad(), session.attention_forced():
            logits = model(inputs[None], use_cache=False, logits_to_keep=window.scored).logits[0]
        logits = logits.to(session.device)  # from the last GPU of a model that is split over several
        first = window.end - window.scored
        for low in range(0, window.scored, rows):
            high = min(low + rows, window.scored)
            log_probabilities = torch.log_softmax(logits[low:high].float(), dim=-1)
            yield slice(first + low, first + high), log_probabilities, ids[first + low + 1 : first + high + 1]
        del logits  # or those of two windows exist while the next one is computed
        trim_heap()


def score_windows(
    session: Session, model, stream: TokenStream, protocol: Protocol, bos: bool, take: Take, until: int | None = None
) -> None:
    """Give ``take`` what ``score`` yields, up to the rows that hold position ``until`` - 1; all of it for None."""
    for positions, log_probabilities, targets in score(session, model, stream, protocol, bos):
        if until is not None and positions.start >= until:
            break
        take(positions, log_probabilities, targets)


def true_token(log_probabilities: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the log-probability of the token that follows, [rows]."""
    return log_probabilities.gather(1, targets[:, None])[:, 0]
