"""One timed call of a workload, and the proof of the attention kernel that it runs."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from llmstudy import runtimes
from llmstudy.measure.session import Session
from llmstudy.models.attention import prove
from llmstudy.runner.job import Workload

PROOF_TOKENS = 2  # one prefill and one decode step under the profiler


def timed_call(runtime: runtimes.Runtime, input_ids: torch.Tensor, workload: Workload) -> dict:
    """Return ``{"ttft_ms", "itl_ms": [one for every token after the first], "e2e_ms"}`` of one generate, milliseconds.

    All times are stamped inside the call: TTFT is the time from the call to the first token, the mean of ``itl_ms`` is
    TPOT, (t_last − t_first) / (n − 1). Raise RuntimeError if another number of tokens came than the workload has: such
    a time compares with nothing.
    """
    start = time.perf_counter()
    timeline = runtime.generate(input_ids)
    e2e_s = time.perf_counter() - start
    expected = (workload.batch, workload.new_tokens)
    if tuple(timeline.tokens.shape) != expected or len(timeline.token_s) != expected[1]:
        raise RuntimeError(
            f"{tuple(timeline.tokens.shape)} tokens with {len(timeline.token_s)} stamps instead of {expected}"
        )
    stamps = timeline.token_s
    return {
        "ttft_ms": round(1e3 * stamps[0], 4),
        "itl_ms": [round(1e3 * (b - a), 4) for a, b in zip(stamps, stamps[1:])],
        "e2e_ms": round(1e3 * e2e_s, 4),
    }


def prove_attention(session: Session, model, workload: Workload, input_ids: torch.Tensor) -> list[str]:
    """Return the attention kernels that run for a workload.

    Preparing is part of the proof: a captured graph shows its operators only while it is captured. Raise Unsupported if
    another kernel than the configured one ran.
    """
    with session.runtime(model, replace(workload, new_tokens=PROOF_TOKENS)) as runtime:

        def run() -> None:
            runtime.prepare()
            runtime.generate(input_ids)

        return prove(session.job.identity.attention, run)
