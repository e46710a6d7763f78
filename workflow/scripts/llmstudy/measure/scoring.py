"""Log-probabilities of a model over the windows of a token stream, in fp32 whatever the model computes in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch

from llmstudy import llama
from llmstudy.errors import StudyError
from llmstudy.measure.session import Session, trim_heap
from llmstudy.measure.text import TokenStream, windows
from llmstudy.progress import progress

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


def score(
    session: Session, model, stream: TokenStream, protocol: Protocol, bos: bool
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Yield (positions, log_probabilities fp32 [rows, vocabulary], targets int64 [rows]) in stream order.

    ``positions`` counts scored tokens from 0: token 1 of the stream is position 0. With ``bos`` every window begins
    with the beginning-of-text token and one real token less of context. Raise StudyError if ``bos``, and the model has
    no such token.
    """
    start_id = session.weights.config().bos_token_id
    if bos and start_id is None:
        raise StudyError(
            f"quality.bos: true, but the config of model {session.weights.name!r} has no bos_token_id; allowed: false"
        )
    rows = ROWS[session.device]
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


def true_token(log_probabilities: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the log-probability of the token that follows, [rows]."""
    return log_probabilities.gather(1, targets[:, None])[:, 0]
