"""The reference's log-probabilities, kept as a file that every precision is compared with.

``logprobs.npy`` float16 [tokens, vocabulary]; ``top5.npy`` int32 [tokens, 5], exact. Readers renormalise after
rounding, so the error of a KL divergence is of second order in the rounding; it is measured here and recorded.
"""

from __future__ import annotations

import shutil

import numpy as np

from llmstudy.errors import StudyError
from llmstudy.llama import protocol_name
from llmstudy.measure.scoring import score
from llmstudy.measure.session import Session, log
from llmstudy.measure.stream import token_stream


def measure(session: Session) -> dict:
    """``{"corpora": [{"corpus", "protocol", "tokens", "bytes", "rounding_kl_mean_nats", "rounding_kl_max_nats"}]}``."""
    model, _ = session.load_model()
    results: dict = {"corpora": []}
    protocol = session.settings["protocols"][0]
    for corpus in session.settings["corpora"]:
        stream = token_stream(session, corpus)
        tokens = min(session.settings["kl_tokens"], len(stream.ids) - 1)
        entry = {"corpus": corpus, "protocol": protocol_name(protocol, session.settings["bos"]), "tokens": tokens}
        results["corpora"].append(entry | keep(session, model, stream, protocol, corpus, tokens))
        session.save(results)
    return results


def keep(session: Session, model, stream, protocol: dict, corpus: str, tokens: int) -> dict:
    """Write the first ``tokens`` rows of log-probabilities; returns size and measured rounding error."""
    import torch

    vocabulary = session.weights.config().vocab_size
    size = tokens * vocabulary * 2
    free = shutil.disk_usage(session.artifacts).free
    log(f"{corpus}: reference log-probabilities take {size / 2**30:.2f} GiB of disk, {free / 2**30:.1f} GiB are free")
    if size > free:
        raise StudyError(
            f"quality.kl_tokens {session.settings['kl_tokens']}: needs {size / 2**30:.2f} GiB in "
            f"{session.artifacts.parent}, {free / 2**30:.2f} GiB are free; lower it or free some space"
        )
    top5 = np.empty((tokens, 5), dtype=np.int32)
    rounding = []
    with logprobs_file(session.artifacts, corpus).open("wb") as file:
        for positions, exact, _ in score(session, model, stream, protocol, session.settings["bos"]):
            rows = min(positions.stop, tokens) - positions.start
            if rows <= 0:
                break
            exact = exact[:rows]
            rounded = exact.half()
            restored = renormalise(rounded)
            rounding.append((exact.exp() * (exact - restored)).sum(-1).cpu())
            file.write(rounded.cpu().numpy().tobytes())
            top5[positions.start : positions.start + rows] = exact.topk(5).indices.cpu().numpy()
    np.save(top5_file(session.artifacts, corpus), top5)
    kl = torch.cat(rounding)
    return {"bytes": size, "rounding_kl_mean_nats": kl.mean().item(), "rounding_kl_max_nats": kl.max().item()}


def renormalise(rounded):
    """fp32 log-probabilities [rows, vocabulary] that sum to one again after rounding to fp16."""
    import torch

    return torch.log_softmax(rounded.float(), dim=-1)


def logprobs_file(folder, corpus: str):
    """Where the rounded log-probabilities of a corpus lie, raw float16 rows."""
    return folder / f"{corpus}.logprobs.f16"


def top5_file(folder, corpus: str):
    """Where the reference's five most probable tokens lie, int32 [tokens, 5], best first."""
    return folder / f"{corpus}.top5.npy"
