"""Quality: per-token NLL under every protocol, and the distance from the reference's distribution under the first.

Per-token values are in ``arrays.npz``, so that every normalization can be derived and every difference paired later;
keys are ``<corpus>/<protocol>/<quantity>``. What was measured is what has an entry with status ok: arrays are written
before their entry, so a process that is killed in between leaves arrays that a reader must ignore.

The reference precision is compared with itself too: computed a second time in another, equivalent way, with another
attention implementation of the library. That distance is the noise floor: order of arithmetic alone, and the rounding
of what is stored, explain as much. Its NLL is that of the configured attention, as for every other precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from llmstudy.errors import Unsupported
from llmstudy.measure.reference import Reference, Settings
from llmstudy.measure.scoring import Protocol, score, true_token
from llmstudy.measure.session import Session
from llmstudy.measure.text import TokenStream, token_stream
from llmstudy.runner.failures import classify


def measure(session: Session) -> dict:
    """Return ``{"protocols": [{"corpus", "protocol", "words", "utf8_bytes", "status", "reason", "tokens", "mean_nll",
    "mean_kl", "mean_top1", "unpaired"}]}``.

    Means of ``kl`` and ``top1`` are there under the first protocol alone; where nothing could be compared, ``unpaired``
    is there instead and says why.
    """
    settings = session.settings_as(Settings)
    itself = session.job.identity.precision == settings.reference
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
                values = measure_protocol(session, model, stream, protocol, settings.bos, None if itself else reference)
                if reference and itself:
                    floor, unpaired = noise_floor(session, model, stream, protocol, settings.bos, reference)
                    values |= floor
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
    """Return float32 arrays: ``nll`` [tokens], and against a reference ``kl`` and ``top1`` [its tokens]. Raise
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


def noise_floor(
    session: Session, model, stream: TokenStream, protocol: Protocol, bos: bool, reference: Reference
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return (``kl`` and ``top1`` of the model with another attention implementation, {}), or ({}, ``{"unpaired":
    reason}``) where it cannot be computed so: that must not cost the perplexity."""
    compared = replace(stream, ids=stream.ids[: reference.tokens + 1])
    try:
        with another_attention(model):
            values = measure_protocol(session, model, compared, protocol, bos, reference)
    except Exception as error:
        return {}, {"unpaired": f"no noise floor, for which attention is computed in another way: {classify(error)[1]}"}
    return {key: values[key] for key in ("kl", "top1")}, {}


@contextmanager
def another_attention(model) -> Iterator[None]:
    """Let the model compute attention with ``eager``, or ``sdpa`` where it is ``eager`` already, within this context.
    Raise Unsupported if the model's attention cannot be changed."""
    configured = model.config._attn_implementation
    other = "sdpa" if configured == "eager" else "eager"
    try:
        model.set_attn_implementation(other)
        if model.config._attn_implementation != other:  # of older models the library only warns
            raise Unsupported(f"{type(model).__name__} does not let its attention be changed to {other}")
        yield
    finally:
        model.set_attn_implementation(configured)
