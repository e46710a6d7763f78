"""Quality: per-token NLL under every protocol, and the distance from the reference's distribution under the first.

Per-token values are in ``arrays.npz``, so that every normalization can be derived and every difference paired later;
keys are ``<corpus>/<protocol>/<quantity>``. What was measured is what has an entry with status ok: arrays are written
before their entry, so a process that is killed in between leaves arrays that a reader must ignore.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llmstudy.measure.reference import Reference, Settings
from llmstudy.measure.scoring import Protocol, score, true_token
from llmstudy.measure.session import Session
from llmstudy.measure.text import TokenStream, token_stream


def measure(session: Session) -> dict:
    """Return ``{"protocols": [{"corpus", "protocol", "words", "utf8_bytes", "status", "reason", "tokens", "mean_nll",
    "mean_kl", "mean_top1", "mean_top5", "unpaired"}]}``.

    Means of ``kl``, ``top1`` and ``top5`` are there under the first protocol alone; where the reference has nothing to
    compare with, ``unpaired`` is there instead and says so.
    """
    settings = session.settings_as(Settings)
    model, _ = session.load_model()
    results: dict = {"protocols": []}
    for corpus in settings.corpora:
        stream = token_stream(session, corpus, settings)
        text = {"words": stream.words, "utf8_bytes": stream.utf8_bytes}
        for number, protocol in enumerate(settings.protocols):
            name = protocol.name(settings.bos)
            # A window that does not fit must not cost the other protocols.
            with session.case(results, "protocols", corpus=corpus, protocol=name, **text) as entry:
                reference, unpaired = open_reference(session, settings, corpus) if number == 0 else (None, {})
                values = measure_protocol(session, model, stream, protocol, settings.bos, reference)
                arrays = values | {"document": stream.document[1:]}
                session.keep_arrays({f"{corpus}/{name}/{key}": array for key, array in arrays.items()})
                means = {f"mean_{key}": float(np.mean(array)) for key, array in values.items()}
                entry |= {"tokens": len(values["nll"])} | means | unpaired
    return results


def open_reference(session: Session, settings: Settings, corpus: str) -> tuple[Reference | None, dict[str, str]]:
    """Return (the reference of a corpus, {}), or (None, ``{"unpaired": reason}``) if the reference left nothing."""
    vocabulary = session.weights.config().vocab_size
    try:
        return Reference(Path(session.job.reference_folder), corpus, vocabulary, session.device), {}
    except FileNotFoundError:
        missing = f"the reference {settings.reference} left no log-probabilities of corpus {corpus}"
        return None, {"unpaired": f"{missing}: see its record in records/reference"}


def measure_protocol(
    session: Session, model, stream: TokenStream, protocol: Protocol, bos: bool, reference: Reference | None
) -> dict[str, np.ndarray]:
    """Return float32 arrays: ``nll`` [tokens], and against a reference ``kl``, ``top1``, ``top5`` [its tokens]. Raise
    FloatingPointError if a value is not finite."""
    nll = np.empty(len(stream.ids) - 1, dtype=np.float32)
    compared: dict[str, list[np.ndarray]] = {}
    for positions, log_probabilities, targets in score(session, model, stream, protocol, bos):
        nll[positions] = -true_token(log_probabilities, targets).cpu().numpy()
        if reference and positions.start < reference.tokens:
            for key, values in reference.compare(positions.start, log_probabilities).items():
                compared.setdefault(key, []).append(values)
    arrays = {"nll": nll} | {key: np.concatenate(values) for key, values in compared.items()}
    for key, values in arrays.items():
        if wrong := np.count_nonzero(~np.isfinite(values)):
            raise FloatingPointError(f"{key}: {wrong} of {len(values)} tokens are not finite; the precision overflows")
    return arrays
