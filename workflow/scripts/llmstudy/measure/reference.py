"""The reference's log-probabilities, stored so that every precision is compared with the same distribution.

The folder of a reference holds for each corpus ``<corpus>.logprobs.f16``, raw float16 rows [tokens, vocabulary], and
``<corpus>.best.npy``, int32 [pairs, 2], (token of the text, most probable token of the vocabulary) from the exact
values, several where they tie. The second is written last and in one step: a corpus without it was not finished. Of
forced tokens ``<corpus>.<protocol>`` takes the place of ``<corpus>``, and the rows are in the order of scoring. Where
the reference is not finite, ``<corpus>.not-finite.txt`` says where instead: nothing can be compared with it.
Readers renormalize after rounding, so the error of a KL divergence is of second order in the rounding; it is measured
here and recorded.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from llmstudy.errors import StudyError
from llmstudy.files import atomic_write
from llmstudy.measure.scoring import Decode, Protocol, Take, score_windows
from llmstudy.measure.session import Session, log
from llmstudy.measure.text import Excerpt, TokenStream, beginning_of, token_stream


@dataclass(frozen=True)
class Settings(Excerpt):
    """Settings of the reference and of quality: under the first protocol, distributions at ``kl_tokens`` tokens of each
    corpus are compared with the reference, and all forced tokens; ``bos``: every window and every prompt begins with
    the beginning-of-text token, None for as the tokenizer begins a text."""

    corpora: tuple[str, ...]
    reference: str
    protocols: tuple[Protocol, ...]
    decode: Decode
    bos: bool | None
    kl_tokens: int


def measure(session: Session) -> dict:
    """Return ``{"corpora": [{"corpus", "protocol", "tokens", "bytes", "rounding_kl_mean_nats",
    "rounding_kl_max_nats"}]}``, with status and reason of forced tokens."""
    settings = session.settings_as(Settings)
    streams = {corpus: token_stream(session, corpus, settings) for corpus in settings.corpora}
    require_space(session, settings, list(streams.values()))
    bos = beginning_of(session, settings.bos).id
    model, _ = session.load_model()
    protocol = settings.protocols[0]
    results: dict = {"corpora": []}
    for corpus, stream in streams.items():
        entry, tokens = {"corpus": corpus, "protocol": protocol.name(bos)}, rows_of(stream, settings)
        scored = partial(score_windows, session, model, stream, protocol, bos, until=tokens)
        results["corpora"].append(entry | store(session, corpus, tokens, scored))
        session.save(results)
        store_decoded(session, model, corpus, settings.decode, bos, results)
    return results


def store_decoded(session: Session, model, corpus: str, decode: Decode, bos: int | None, results: dict) -> None:
    """Write the reference of the forced tokens of a corpus and add it to ``results``; a runtime that cannot score them
    must not cost the windows."""
    for batch in decode.batches:
        name = decode.name(bos, batch)
        with session.case(results, "corpora", corpus=corpus, protocol=name) as entry:
            ids, _ = decode.text(session, corpus, bos)
            scored = partial(decode.score, session, model, ids, batch)
            entry |= store(session, f"{corpus}.{name}", decode.tokens, scored)


def require_space(session: Session, settings: Settings, streams: list[TokenStream]) -> None:
    """Check for enough disk space before hours of scoring; artifacts are on the disk that they are published on. Raise
    StudyError if there is too little."""
    decoded = len(settings.decode.batches) * settings.decode.tokens
    tokens = sum(rows_of(stream, settings) + decoded for stream in streams)
    size = tokens * session.weights.config().vocab_size * np.dtype(np.float16).itemsize
    free = shutil.disk_usage(session.artifacts).free
    log(f"log-probabilities take {size / 2**30:.2f} GiB of disk, {free / 2**30:.1f} GiB are free")
    if size > free:
        raise StudyError(
            f"quality.kl_tokens: {settings.kl_tokens} needs {size / 2**30:.2f} GiB on the disk of "
            f"{session.job.reference_folder}, {free / 2**30:.2f} GiB are free; lower it or free some space"
        )


def rows_of(stream: TokenStream, settings: Settings) -> int:
    """Return the number of scored tokens whose distribution is stored."""
    return min(settings.kl_tokens, len(stream.ids) - 1)


def store(session: Session, name: str, tokens: int, scored: Callable[[Take], None]) -> dict:
    """Write what ``scored`` gives, of the first ``tokens`` tokens; return its size and the measured error of the
    rounding to fp16. Raise FloatingPointError if the model's logits are not finite."""
    rounding, best = [], []
    with _logprobs_file(session.artifacts, name).open("wb") as file:

        def take(positions: slice, exact: torch.Tensor, targets: torch.Tensor) -> None:
            exact = exact[: tokens - positions.start]
            rounded = exact.half()
            rounding.append(divergence(exact, renormalize(rounded)).cpu())
            file.write(rounded.cpu().numpy().tobytes())
            row, token = most_probable(exact)
            best.append(torch.stack([row + positions.start, token], dim=1).int().cpu())

        try:
            scored(take)
        except FloatingPointError as error:
            _not_finite_file(session.artifacts, name).write_text(str(error), encoding="utf-8")
            raise
        size = file.tell()
    with atomic_write(_best_file(session.artifacts, name), "wb") as file:
        np.save(file, torch.cat(best).numpy())
    kl = torch.cat(rounding)
    return {
        "tokens": tokens,
        "bytes": size,
        "rounding_kl_mean_nats": kl.mean().item(),
        "rounding_kl_max_nats": kl.max().item(),
    }


class Reference:
    """The stored log-probabilities of one corpus, or of its forced tokens, read row by row in the order of scoring."""

    def __init__(self, folder: Path, corpus: str, vocabulary: int, device: str):
        """Open the reference of a corpus, or ``<corpus>.<protocol>``. Raise FileNotFoundError if it left none, and
        FloatingPointError if it is not finite."""
        if (overflow := _not_finite_file(folder, corpus)).exists():
            raise FloatingPointError(overflow.read_text(encoding="utf-8"))
        self.best = np.load(_best_file(folder, corpus))
        self.file = _logprobs_file(folder, corpus).open("rb")
        self.tokens = _logprobs_file(folder, corpus).stat().st_size // (2 * vocabulary)
        self.vocabulary = vocabulary
        self.device = device

    def compare(self, start: int, candidate: torch.Tensor) -> dict[str, np.ndarray]:
        """Compare rows ``start`` … with a candidate's log-probabilities fp32 [rows, vocabulary].

        Returns:
            float32 [rows] each: ``kl``, Σ p (ln p − ln q) in nats, p the reference and q the candidate; ``top1``, 1
            where a most probable token of both is the same. Of several that tie (the two best of a model in bf16 at 4 %
            of positions) each is one: which of them a search finds first says nothing about the model.
        """
        rows = min(len(candidate), self.tokens - start)
        candidate = candidate[:rows]
        raw = self.file.read(rows * self.vocabulary * 2)
        rounded = torch.frombuffer(bytearray(raw), dtype=torch.float16).view(rows, self.vocabulary)
        low, high = np.searchsorted(self.best[:, 0], [start, start + rows])
        row, token = torch.from_numpy(self.best[low:high]).to(self.device, torch.int64).T
        row = row - start
        same = torch.zeros(rows, device=self.device)
        same[row[candidate[row, token] == candidate.amax(-1)[row]]] = 1
        compared = {"kl": divergence(renormalize(rounded.to(self.device)), candidate), "top1": same}
        return {key: values.cpu().numpy() for key, values in compared.items()}


def most_probable(log_probabilities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (rows, tokens), int64 [pairs] each: every most probable token of each row, ascending by row."""
    return (log_probabilities == log_probabilities.amax(-1, keepdim=True)).nonzero(as_tuple=True)


def divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return KL(p ‖ q) of each row, nats [rows], from log-probabilities [rows, vocabulary]."""
    weight = p.exp()
    return torch.where(weight > 0, weight * (p - q), 0).sum(-1)  # 0 ln 0 is 0: a token that the model rules out


def renormalize(rounded: torch.Tensor) -> torch.Tensor:
    """Return log-probabilities fp32 [rows, vocabulary] that sum to one again after rounding to fp16."""
    return torch.log_softmax(rounded.float(), dim=-1)


def _logprobs_file(folder: Path, corpus: str) -> Path:
    return folder / f"{corpus}.logprobs.f16"


def _not_finite_file(folder: Path, corpus: str) -> Path:
    return folder / f"{corpus}.not-finite.txt"


def _best_file(folder: Path, corpus: str) -> Path:
    return folder / f"{corpus}.best.npy"
