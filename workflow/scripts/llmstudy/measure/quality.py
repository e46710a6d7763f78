"""Quality: per-token NLL under every protocol, and the distance to the reference's distribution under the first.

Per-token values go into ``arrays.npz`` so that every convention can be derived and every difference paired later;
keys are ``<corpus>/<protocol>/<quantity>``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from llmstudy.llama import protocol_name
from llmstudy.measure.reference import logprobs_file, renormalise, top5_file
from llmstudy.measure.scoring import score, true_token
from llmstudy.measure.session import Session, log
from llmstudy.measure.stream import TokenStream, token_stream


def measure(session: Session) -> dict:
    """``{"protocols": [{"corpus", "protocol", "status", "tokens", "words", "utf8_bytes", "nll", …}]}``."""
    model, _ = session.load_model()
    arrays: dict[str, np.ndarray] = {}
    results: dict = {"protocols": []}
    for corpus in session.settings["corpora"]:
        stream = token_stream(session, corpus)
        for number, protocol in enumerate(session.settings["protocols"]):
            name = protocol_name(protocol, session.settings["bos"])
            reference = Reference.open(session, corpus) if number == 0 else None
            about = {"corpus": corpus, "protocol": name, "words": stream.words, "utf8_bytes": stream.utf8_bytes}
            measured = partial(measure_protocol, session, model, stream, protocol, reference)
            # A window that does not fit must not cost the other protocols.
            run = partial(keep, session.artifacts, arrays, f"{corpus}/{name}", stream, measured)
            session.piece(results, "protocols", about, run)
    return results


def keep(
    folder: Path,
    arrays: dict[str, np.ndarray],
    key: str,
    stream: TokenStream,
    measured: Callable[[], dict[str, np.ndarray]],
) -> dict:
    """Put what was measured per token into ``arrays`` and their file; give its length and its means."""
    found = measured()
    arrays |= {f"{key}/{what}": values for what, values in found.items()} | {f"{key}/document": stream.document[1:]}
    replace_arrays(folder / "arrays.npz", arrays)
    return {"tokens": len(found["nll"])} | {f"mean_{what}": float(np.mean(values)) for what, values in found.items()}


def measure_protocol(
    session: Session, model, stream: TokenStream, protocol: dict, reference: Reference | None
) -> dict[str, np.ndarray]:
    """float32 arrays: ``nll`` [tokens], and against a reference ``kl``, ``top1``, ``top5``."""
    nll = np.empty(len(stream.ids) - 1, dtype=np.float32)
    compared: dict[str, list[np.ndarray]] = {}
    for positions, log_probabilities, targets in score(session, model, stream, protocol, session.settings["bos"]):
        nll[positions] = -true_token(log_probabilities, targets).cpu().numpy()
        if reference and positions.start < reference.tokens:
            for key, values in reference.compare(positions.start, log_probabilities).items():
                compared.setdefault(key, []).append(values)
    found = {"nll": nll} | {key: np.concatenate(values) for key, values in compared.items()}
    for key, values in found.items():
        if lost := np.count_nonzero(~np.isfinite(values)):
            raise FloatingPointError(f"{key}: {lost} of {len(values)} tokens are not finite; the precision overflows")
    return found


def replace_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Replace the file in one step: this process may be killed at any moment, and finished protocols must stay."""
    partial = path.with_name(f"partial-{path.name}")
    np.savez_compressed(partial, **arrays)
    partial.replace(path)


class Reference:
    """The reference's stored log-probabilities of one corpus, read row by row in stream order."""

    def __init__(self, folder: Path, corpus: str, vocabulary: int, device: str):
        self.file = logprobs_file(folder, corpus).open("rb")
        self.top5 = np.load(top5_file(folder, corpus))
        self.tokens = len(self.top5)
        self.vocabulary = vocabulary
        self.device = device

    @classmethod
    def open(cls, session: Session, corpus: str) -> Reference | None:
        """The reference of this job, or None (with a line in the log) if it left nothing to compare with."""
        folder = Path(session.job["reference_folder"])
        top5 = top5_file(folder, corpus)
        if not top5.exists() or not top5.stat().st_size:
            log(f"{folder}: the reference left no log-probabilities; KL divergence and agreement stay empty")
            return None
        return cls(folder, corpus, session.weights.config().vocab_size, session.device)

    def compare(self, start: int, candidate) -> dict[str, np.ndarray]:
        """Rows ``start`` … against the candidate's log-probabilities fp32 [rows, vocabulary].

        kl    Σ p (ln p − ln q), nats, p the reference and q the candidate
        top1  1 where the most probable token is the same
        top5  share of the reference's five most probable tokens among the candidate's five
        """
        import torch

        rows = min(len(candidate), self.tokens - start)
        candidate = candidate[:rows]
        raw = self.file.read(rows * self.vocabulary * 2)
        rounded = torch.frombuffer(bytearray(raw), dtype=torch.float16).view(rows, self.vocabulary)
        reference = renormalise(rounded.to(self.device))
        kl = (reference.exp() * (reference - candidate)).sum(-1)
        best = candidate.topk(5).indices
        top5 = torch.from_numpy(self.top5[start : start + rows]).to(self.device)
        overlap = (best[:, :, None] == top5[:, None, :]).any(2).float().mean(1)
        found = {"kl": kl, "top1": (best[:, 0] == top5[:, 0]).float(), "top5": overlap}
        return {key: values.cpu().numpy() for key, values in found.items()}
