"""Quality: per-token NLL under every protocol, and the distance from the reference's distribution under the first.

Per-token values are in ``arrays.npz``, so that every normalization can be derived and every difference paired later;
keys are ``<corpus>/<protocol>/<quantity>``. What was measured is what has an entry with status ok: arrays are written
before their entry, so a process that is killed in between leaves arrays that a reader must ignore.

The reference precision is compared with itself too: computed a second time in another, equivalent way, with another
attention implementation of the library. That distance is the noise floor: order of arithmetic alone, and the rounding
of what is stored, explain as much. Its NLL is that of the configured attention, as for every other precision.

Windows are scored by the library's forward pass, the path of a prompt. Forced tokens (``decode``) go through the token
step of the job's runtime, whose kernels may be others, and under the base runtime through one pass too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch

from llmstudy import runtimes
from llmstudy.errors import Unsupported
from llmstudy.measure import footprint
from llmstudy.measure.reference import Reference, Settings
from llmstudy.measure.scoring import Take, score_windows, true_token
from llmstudy.measure.session import Session
from llmstudy.measure.text import TokenStream, beginning_of, token_stream
from llmstudy.runner.failures import classify

Scored = Callable[[Take], None]


def measure(session: Session) -> dict:
    """Return ``{"bos": {"token", "habit"}, "quantized_share", "protocols": [{"corpus", "protocol", "words",
    "utf8_bytes", "uncounted", "status", "reason", "tokens", "mean_nll", "mean_kl", "mean_top1", "unpaired"}]}``.

    ``token`` begins every window, ``habit`` is what the tokenizer adds by itself, null for none. ``uncounted`` says why
    words or bytes are null.
    Means of ``kl`` and ``top1`` are there under the first protocol and of forced tokens alone; where nothing could be
    compared, ``unpaired`` is there instead and says why.
    """
    settings = session.settings_as(Settings)
    beginning, decode = beginning_of(session, settings.bos), settings.decode
    bos = beginning.id
    identity = session.job.identity
    itself = (identity.precision, identity.runtime) == (settings.reference, runtimes.BASE)
    results: dict = {"bos": {"token": beginning.token, "habit": beginning.habit}, "protocols": []}
    session.save(results)  # the labels of the protocols are known also where the model cannot be loaded
    model, _ = session.load_model()
    results["quantized_share"] = footprint.quantized_share(model)

    def grade(entry: dict, name: str, scored: Scored, document: np.ndarray, stored: str = "", batch: int = 0) -> None:
        """Measure a protocol into its entry; ``stored``: the reference's distributions, or nothing to compare with."""
        reference, unpaired = open_reference(session, settings, stored) if stored else (None, {})
        values = values_of(scored, len(document), None if itself else reference)
        require_finite(values)
        if reference and itself:
            floor, unpaired = noise_floor(model, partial(scored, until=reference.tokens), len(document), reference)
            values |= floor
        if batch:
            values = {key: decode.in_text_order(array, batch) for key, array in values.items()}
        arrays = values | {"document": document}
        session.keep_arrays({f"{corpus}/{name}/{key}": array for key, array in arrays.items()})
        means = {f"mean_{key}": float(np.mean(array)) for key, array in values.items()}
        entry |= {"tokens": len(document)} | means | unpaired

    for corpus in settings.corpora:
        stream = token_stream(session, corpus, settings) if settings.protocols else None
        for number, protocol in enumerate(settings.protocols):
            about = {"corpus": corpus, "protocol": protocol.name(bos)} | size_of(stream)
            # A window that does not fit must not cost the other protocols.
            with session.case(results, "protocols", **about) as entry:
                scored = partial(score_windows, session, model, stream, protocol, bos)
                grade(entry, about["protocol"], scored, stream.document[1:], corpus * (number == 0))
        for batch in decode.batches:
            name = decode.name(bos, batch)
            with session.case(results, "protocols", corpus=corpus, protocol=name) as entry:
                ids, text = decode.text(session, corpus, bos)
                entry |= size_of(text)
                scored = partial(decode.score, session, model, ids, batch)
                grade(entry, name, scored, text.document, f"{corpus}.{name}" * bool(batch), batch)
    return results


def size_of(stream: TokenStream) -> dict:
    """Return the size of a text, for word and byte perplexity, and why it is not known."""
    return {"words": stream.words, "utf8_bytes": stream.utf8_bytes, "uncounted": stream.uncounted}


def open_reference(session: Session, settings: Settings, stored: str) -> tuple[Reference | None, dict[str, str]]:
    """Return (the reference of a corpus or of ``<corpus>.<protocol>``, {}), or (None, ``{"unpaired": reason}``) if the
    reference left nothing."""
    vocabulary = session.weights.config().vocab_size
    try:
        return Reference(Path(session.job.reference_folder), stored, vocabulary, session.device), {}
    except FloatingPointError as error:
        return None, {"unpaired": f"the reference {settings.reference} is {error}"}
    except FileNotFoundError:
        corpus, _, protocol = stored.partition(".")
        missing = f"the reference {settings.reference} left no log-probabilities of corpus {corpus}"
        missing += f" under {protocol}" * bool(protocol)
        return None, {"unpaired": f"{missing}: see its record in records/reference"}


def values_of(scored: Scored, tokens: int, reference: Reference | None) -> dict[str, np.ndarray]:
    """Return float32 arrays of what ``scored`` gives: ``nll`` [tokens], NaN where it gave nothing, and against a
    reference ``kl`` and ``top1`` [its tokens]."""
    nll = np.full(tokens, np.nan, dtype=np.float32)
    compared: dict[str, list[np.ndarray]] = {}

    def take(positions: slice, log_probabilities: torch.Tensor, targets: torch.Tensor) -> None:
        nll[positions] = -true_token(log_probabilities, targets).cpu().numpy()
        if reference and positions.start < reference.tokens:
            for key, values in reference.compare(positions.start, log_probabilities).items():
                compared.setdefault(key, []).append(values)

    scored(take)
    return {"nll": nll} | {key: np.concatenate(values) for key, values in compared.items()}


def require_finite(arrays: dict[str, np.ndarray]) -> None:
    """Raise FloatingPointError if a value is not finite."""
    for key, values in arrays.items():
        if wrong := np.count_nonzero(~np.isfinite(values)):
            raise FloatingPointError(f"{key}: {wrong} of {len(values)} tokens are not finite")


def noise_floor(
    model, scored: Scored, tokens: int, reference: Reference
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return (``kl`` and ``top1`` of the model with another attention implementation, {}), or ({}, ``{"unpaired":
    reason}``) where it cannot be computed so: that must not cost the perplexity."""
    try:
        with another_attention(model):
            values = values_of(scored, tokens, reference)
        floor = {key: values[key] for key in ("kl", "top1")}
        require_finite(floor)
    except Exception as error:
        return {}, {"unpaired": f"no noise floor, for which attention is computed in another way: {classify(error)[1]}"}
    return floor, {}


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
