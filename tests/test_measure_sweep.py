"""LLM.int8() at one threshold, and what lets it use the reference kept for a longer text."""

import extra_jobs
import numpy as np
import pytest
from llmstudy.measure import sweep
from llmstudy.measure.stream import windows


@pytest.mark.parametrize(("window", "stride"), [(8, 8), (8, 3), (5, 1)])
def test_a_shorter_text_is_scored_with_the_same_context(window, stride):
    def begins(tokens):
        return [one.begin for one in windows(tokens, window, stride) for _ in range(one.scored)]

    long = begins(50)
    for tokens in range(2, 50):
        assert begins(tokens) == long[: tokens - 1]


def measured(folder, threshold, **settings):
    session = extra_jobs.session(folder, "sweep", threshold=threshold, tokens=40, **settings)
    found = sweep.measure(session)
    with np.load(session.artifacts / "arrays.npz") as arrays:
        return found, {key.rsplit("/", 1)[-1]: arrays[key] for key in arrays}


def test_infinity_searches_and_finds_nothing_so_it_scores_like_zero(tmp_path):
    zero, off = measured(tmp_path, "0")
    infinite, searched = measured(tmp_path, "inf")
    _, low = measured(tmp_path, "0.5")
    assert np.array_equal(off["nll"], searched["nll"])
    assert not np.array_equal(off["nll"], low["nll"])  # the threshold reaches the model
    assert zero["protocols"][0]["mean_nll"] == infinite["protocols"][0]["mean_nll"]


def test_keeps_quality_of_the_beginning_and_timed_runs(tmp_path):
    workload = {"batch": 2, "prompt_tokens": 9, "new_tokens": 4}
    found, arrays = measured(tmp_path, "6", runs=2, workload=workload)
    (entry,) = found["protocols"]
    assert entry["tokens"] == 39 == len(arrays["nll"]) == len(arrays["document"])
    assert entry["protocol"] == "w64-s32" and entry["status"] == "ok"
    assert entry["mean_nll"] == pytest.approx(arrays["nll"].mean())
    assert [len(run["itl_ms"]) for run in found["runs"]] == [3, 3]
