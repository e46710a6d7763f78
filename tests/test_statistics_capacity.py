"""The memory model on a synthetic law, and the frontier that it predicts."""

import math

import numpy as np
import pandas as pd
import pytest
from llmstudy.errors import StudyError
from llmstudy.stats.capacity import capacity_table, fit_memory, measured_frontier, non_negative_least_squares

WEIGHTS, KV, FIXED, ROW, TOKEN, SQUARE = 12.5, 4.9e-4, 0.3, 0.02, 1.1e-4, 3e-8
WORKLOADS = [(b, p, n) for b in (1, 4, 16) for p, n in ((128, 32), (1024, 32), (4096, 128))]


def law(batch, context):
    return WEIGHTS + FIXED + batch * (ROW + (KV + TOKEN) * context + SQUARE * context**2)


def memory_rows(workloads=WORKLOADS, peak=law, **columns):
    rows = []
    for batch, prompt, new in workloads:
        context = prompt + new
        row = {"model": "m", "precision": "bf16", "attention": "sdpa", "runtime": "generate", "status": "ok"}
        row |= {
            "batch": batch,
            "prompt_tokens": prompt,
            "new_tokens": new,
            "weights_gib": WEIGHTS,
            "peak_load_gib": 12.6,
        }
        row |= {"kv_cache_gib": KV * batch * context, "peak_prefill_gib": 0.9 * peak(batch, context)}
        rows.append(row | {"peak_decode_gib": peak(batch, context)} | columns)
    return pd.DataFrame(rows)


def test_the_law_is_found_again():
    model = fit_memory(memory_rows())
    found = (model.weights, model.kv, model.fixed, model.row, model.token, model.square)
    assert found == pytest.approx((WEIGHTS, KV, FIXED, ROW, TOKEN, SQUARE), rel=1e-6)
    assert model.residual < 1e-9 and model.rows == 9


@pytest.mark.parametrize("device_gib", [16, 24, 80, 139.8])
@pytest.mark.parametrize("size", [1, 7, 512, 8192])
def test_the_largest_workload_is_that_of_exhaustive_search(device_gib, size):
    model = fit_memory(memory_rows())
    batches = [batch for batch in range(1, 7000) if law(batch, size) <= device_gib]
    assert model.largest_batch(size, device_gib) == (max(batches) if batches else 0)


def test_a_model_that_does_not_load_fits_no_batch():
    model = fit_memory(memory_rows().assign(peak_load_gib=20.0))
    assert model.largest_batch(128, 19.9) == 0
    assert model.largest_batch(128, 20.0) > 0
    assert model.peak_gib(1, 1) == 20.0
    # While loading on a CPU the process holds pages of the weight file that the kernel can take back.
    assert fit_memory(memory_rows().assign(peak_load_gib=20.0, device="cpu")).largest_batch(128, 19.9) > 0


def test_the_table_stands_just_below_and_just_above_the_frontier():
    table = capacity_table(fit_memory(memory_rows()), [1024, 100_000], 24.0)
    assert table["fits_gib"].iloc[0] <= 24.0 < table["too_large_gib"].iloc[0]
    assert table["first_too_large"].iloc[0] == table["largest_batch"].iloc[0] + 1
    assert table["largest_batch"].iloc[1] == 0 and math.isnan(table["fits_gib"].iloc[1])
    assert (table["fitted_rows"] == 9).all() and (table["residual_gib"] < 1e-9).all()


def test_noise_below_the_accounted_memory_never_makes_a_term_negative():
    rng = np.random.default_rng(1)
    rows = memory_rows()
    rows["peak_decode_gib"] -= 0.5 * rng.random(len(rows))
    model = fit_memory(rows)
    assert min(model.fixed, model.row, model.token, model.square) >= 0


def test_two_workloads_predict_those_two_and_one_is_too_few():
    model = fit_memory(memory_rows(WORKLOADS[:2]))
    assert model.residual < 1e-9 and (model.row, model.square) == (0, 0)
    with pytest.raises(StudyError, match="at least 2 measured workloads, there is 1"):
        fit_memory(memory_rows(WORKLOADS[:1]))
    flat = memory_rows(WORKLOADS[:3], peak=lambda batch, context: WEIGHTS).assign(kv_cache_gib=0.0)
    with pytest.raises(StudyError, match="does not grow"):
        fit_memory(flat)


def test_host_memory_stands_in_where_a_device_has_no_peaks():
    rows = memory_rows().rename(columns={"peak_decode_gib": "peak_rss_gib"}).drop(columns="peak_prefill_gib")
    assert fit_memory(rows).token == pytest.approx(TOKEN)


def test_non_negative_least_squares_meets_its_optimality_conditions():
    """Karush-Kuhn-Tucker: the gradient is zero on the support and not negative off it."""
    rng = np.random.default_rng(2)
    for _ in range(50):
        terms, target = rng.random((8, 4)), rng.standard_normal(8)
        found = non_negative_least_squares(terms, target)
        gradient = terms.T @ (terms @ found - target)
        assert (found >= 0).all()
        assert np.abs(gradient[found > 0]).max(initial=0) < 1e-9 and gradient[found == 0].min(initial=0) > -1e-9
    collinear = np.stack([np.arange(5.0), 2 * np.arange(5.0)], axis=1)
    assert non_negative_least_squares(collinear, np.arange(5.0)).tolist() == pytest.approx([1.0, 0.0])


def test_the_measured_frontier_locates_out_of_memory():
    rows = memory_rows([(1, 100, 28), (8, 100, 28), (16, 100, 28), (32, 100, 28), (1, 1000, 24)])
    rows.loc[rows["batch"] >= 16, "status"] = "oom"
    found = measured_frontier(rows).set_index("context_tokens")
    assert found.loc[128].tolist() == [8, 16]
    assert found.loc[1024, "largest_ok"] == 1 and math.isnan(found.loc[1024, "smallest_oom"])
