"""Statistics against closed forms, published examples and simulated coverage."""

import math

import numpy as np
import pytest
from llmstudy.stats.capacity import Usage, fit_memory
from llmstudy.stats.crossover import cross_over
from llmstudy.stats.estimate import critical_value, holm, percentile, student_p
from llmstudy.stats.processes import ratio
from llmstudy.stats.quality import (
    agreement,
    bootstrap_mean,
    document_blocks,
    normalizations,
    paired_difference,
    perplexity,
)
from llmstudy.stats.text import (
    agreement_curve,
    distinct_n,
    first_divergence,
    median_divergence,
    paired_change,
    wilson,
)

# --------------------------------------------------------------------------------------------------------- estimates


@pytest.mark.parametrize(("degrees", "expected"), [(1, 12.7062), (2, 4.3027), (9, 2.2622), (30, 2.0423)])
def test_student_s_t_is_that_of_the_printed_tables(degrees, expected):
    assert critical_value(degrees) == pytest.approx(expected, abs=5e-5)
    assert student_p(-expected, degrees) == pytest.approx(0.05, abs=1e-5)
    assert math.isnan(student_p(math.nan, degrees))


def test_holm_by_hand():
    adjusted = holm(np.array([0.01, 0.04, math.nan, 0.03, 0.005]))
    np.testing.assert_allclose(adjusted, [0.03, 0.06, math.nan, 0.06, 0.02])
    assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]


def test_percentiles_need_ten_observations_beyond():
    sample = np.arange(1000.0)
    assert percentile(sample, 99) == pytest.approx(np.percentile(sample, 99))
    assert math.isnan(percentile(sample[:999], 99)) and math.isnan(percentile(sample, 0.9))
    assert not math.isnan(percentile(np.arange(10_000.0), 99.9))


# --------------------------------------------------------------------------------------------------------- processes


@pytest.mark.parametrize("samples", [[41.0], [41.0, math.nan], [41.0, 41.0, 41.0]])
def test_no_spread_is_no_interval(samples):
    estimate = ratio(samples, [20.5, 20.5])
    assert estimate.value == pytest.approx(2.0)
    assert math.isnan(estimate.low) and math.isnan(estimate.high) and math.isnan(estimate.p)


def test_empty_and_impossible_samples():
    assert math.isnan(ratio([], [40.0]).value)
    with pytest.raises(ValueError, match="positive"):
        ratio([1.0, 0.0], [1.0])


def test_ratio_of_swapped_sides_is_the_inverse():
    forth, back = ratio([70.0, 75.0, 72.0], [40.0, 42.0]), ratio([40.0, 42.0], [70.0, 75.0, 72.0])
    assert (forth.value, forth.low, forth.high) == pytest.approx((1 / back.value, 1 / back.high, 1 / back.low))
    assert forth.p == pytest.approx(back.p)


def test_unequal_variances_give_welch_s_degrees_of_freedom():
    calm, wild = np.array([-0.01, 0.0, 0.01]), np.array([-0.1, -0.1, 0.1, 0.1])
    estimate = ratio(2 * np.exp(wild), np.exp(calm))
    parts = 0.04 / 3 / 4, 0.01**2 / 3
    degrees = sum(parts) ** 2 / (parts[0] ** 2 / 3 + parts[1] ** 2 / 2)
    half = critical_value(math.floor(degrees)) * math.sqrt(sum(parts))
    assert 3 < degrees < 4 and (estimate.low, estimate.high) == pytest.approx((2 * math.exp(-half), 2 * math.exp(half)))


# ------------------------------------------------------------------------------------------------------- proportions


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), pages 857 to 872, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_is_that_of_the_literature(successes, trials, low, high):
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("table", "value", "low", "high", "p"),
    [
        # airway hyper-responsiveness before and after transplantation (Bentur et al. 2009), as in Fagerland, Lydersen
        # and Laake, Statistics in Medicine 33 (2014), pages 2850 to 2875: before is the reference, 1 and 8 of 21
        ((1, 1, 7, 12), 6 / 21, 0.026, 0.507, 0.0703),
        # Newcombe, Statistics in Medicine 17 (1998), pages 2635 to 2650: the sides never fail together
        ((36, 12, 2, 0), -0.2, -0.3404, -0.0569, 0.0129),
    ],
)
def test_a_paired_change_is_that_of_the_literature(table, value, low, high, p):
    change = paired_change(*table)
    assert (change.value, change.low, change.high, change.p) == pytest.approx((value, low, high, p), abs=5e-4)
    both, lost, gained, neither = table
    mirrored = paired_change(both, gained, lost, neither)
    assert (mirrored.low, mirrored.high) == pytest.approx((-change.high, -change.low))


def test_the_interval_of_a_paired_change_covers_the_truth_in_19_of_20_studies():
    counts = np.random.default_rng(5).multinomial(200, [0.55, 0.08, 0.04, 0.33], size=1000)  # the truth is -0.04
    changes = [paired_change(*map(int, drawn)) for drawn in counts]
    assert 0.935 < np.mean([change.low <= -0.04 <= change.high for change in changes]) < 0.975
    unpaired = math.sqrt(0.63 * 0.37 / 200 + 0.59 * 0.41 / 200) * 2 * 1.96
    assert np.mean([change.high - change.low for change in changes]) < 0.55 * unpaired  # what pairing gains


def test_no_flips_and_no_documents():
    same = paired_change(30, 0, 0, 20)
    assert (same.value, same.p) == (0, 1) and same.low == pytest.approx(-same.high) and same.high > 0
    assert math.isnan(paired_change(0, 0, 0, 0).value)
    assert paired_change(5, 0, 9, 5).p == pytest.approx(2 / 2**9)


# ------------------------------------------------------------------------------------------------------- cross-overs

GRID = [1, 2, 4, 8, 16, 32]


def power_laws(at, *, noise=0.0, repeats=1, rng=None, slope=0.4):
    """Reference x^0.5 and candidate x^(0.5 + slope), scaled to cross exactly at ``at``; straight lines in log-log."""
    x = np.array(GRID, dtype=float)
    curves = [x**0.5, x ** (0.5 + slope) / at**slope]
    if rng is None:
        return [[[value] * repeats for value in curve] for curve in curves]
    return [[value * np.exp(noise * rng.standard_normal(repeats)) for value in curve] for curve in curves]


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("at", [1.3, 5.0, 8.0, 27.0])
def test_the_crossing_of_two_power_laws_is_exact_and_without_noise_has_no_interval(at, repeats):
    reference, candidate = power_laws(at, repeats=repeats)
    crossing = cross_over(GRID, reference, candidate)
    assert (crossing.kind, crossing.changes) == ("overtakes", 1) and crossing.x == pytest.approx(at)
    assert math.isnan(crossing.low) and math.isnan(crossing.high)
    mirrored = cross_over(GRID, candidate, reference)
    assert mirrored.kind == "falls behind" and mirrored.x == pytest.approx(at)


def test_never_always_and_several_times():
    reference, candidate = power_laws(100.0)
    assert cross_over(GRID, reference, candidate).kind == "behind throughout"
    assert cross_over(GRID, candidate, reference).kind == "ahead throughout"
    assert cross_over(GRID, reference, reference).kind == "behind throughout"
    assert cross_over([1, 2, 4], [[1], [1], [1]], [[0.5], [2.0], [0.5]]).changes == 2


def test_the_interval_covers_the_crossing():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        crossing = cross_over(GRID, *power_laws(6.0, noise=0.05, repeats=3, rng=rng))
        covered += crossing.low <= 6.0 <= crossing.high
    assert 0.92 <= covered / 300 <= 0.98


def test_an_interval_that_leaves_the_grid_is_open():
    curves = power_laws(30.0, noise=0.15, repeats=3, rng=np.random.default_rng(2))
    assert cross_over(GRID, *curves).high == math.inf
    curves = power_laws(1.1, noise=0.15, repeats=3, rng=np.random.default_rng(5))
    assert cross_over(GRID, *curves).low == 0


# ------------------------------------------------------------------------------------------------------------ memory

WEIGHTS, KV, FIXED, ROW, TOKEN, SQUARE = 12.5, 4.9e-4, 0.3, 0.02, 1.1e-4, 3e-8
WORKLOADS = [(batch, context) for batch in (1, 4, 16) for context in (160, 1056, 4224)]


def law(batch, context):
    return WEIGHTS + FIXED + batch * (ROW + (KV + TOKEN) * context + SQUARE * context**2)


def usages(workloads=WORKLOADS, peak=law, kv=KV):
    return [Usage(b, c, WEIGHTS, kv * b * c, peak(b, c)) for b, c in workloads]


def test_the_law_is_found_again():
    model = fit_memory(usages())
    coefficients = (model.weights, model.kv, model.fixed, model.row, model.token, model.square)
    assert coefficients == pytest.approx((WEIGHTS, KV, FIXED, ROW, TOKEN, SQUARE), rel=1e-6)
    assert model.rows == 9


def test_rounding_is_no_residual():
    """The same sums in another order differ by 1e-16 from CPU to CPU; tables that are compared must not."""
    assert fit_memory(usages()).residual == 0
    assert fit_memory(usages(peak=lambda b, c: law(b, c) + 1e-3 * (b == 4))).residual > 1e-4


@pytest.mark.parametrize("device_gib", [16, 24, 139.8])
@pytest.mark.parametrize("size", [1, 512, 8192])
def test_the_largest_workload_is_that_of_exhaustive_search(device_gib, size):
    batches = [batch for batch in range(1, 7000) if law(batch, size) <= device_gib]
    assert fit_memory(usages()).largest_batch(size, device_gib) == (max(batches) if batches else 0)


def test_a_model_that_does_not_load_fits_no_batch():
    model = fit_memory(usages(), load=20.0)
    assert model.largest_batch(128, 19.9) == 0 and model.largest_batch(128, 20.0) > 0
    assert model.peak_gib(1, 1) == 20.0


def test_noise_below_the_accounted_memory_never_makes_a_term_negative():
    noise = iter(np.random.default_rng(1).random(9))
    model = fit_memory(usages(peak=lambda b, c: law(b, c) - 0.5 * next(noise)))
    assert min(model.fixed, model.row, model.token, model.square) >= 0 and model.residual > 0


def test_a_term_that_the_workloads_cannot_tell_from_another_stays_zero():
    model = fit_memory(usages(WORKLOADS[:2]))
    assert model.residual == 0 and (model.row, model.square) == (0, 0)
    one_context = fit_memory(usages([(batch, 160) for batch in (1, 2, 4, 8)]))
    assert one_context.residual == 0 and (one_context.row, one_context.square) == (0, 0) and one_context.token > 0


def test_one_workload_is_too_few_and_memory_must_grow():
    with pytest.raises(ValueError, match="at least 2 measured workloads, there is 1"):
        fit_memory(usages(WORKLOADS[:1]))
    with pytest.raises(ValueError, match="does not grow"):
        fit_memory(usages(peak=lambda b, c: WEIGHTS, kv=0.0))


# ----------------------------------------------------------------------------------------------------------- quality


def corpus(rng, documents, *, spread=0.5, effect=0.05, effect_spread=0.02):
    """Reference and candidate NLL of documents of 20 to 80 tokens that differ in level and in the candidate's loss."""
    document = np.repeat(np.arange(documents), rng.integers(20, 80, documents))
    level = (3 + spread * rng.standard_normal(documents))[document]
    loss = (effect + effect_spread * rng.standard_normal(documents))[document]
    reference = level + 0.5 * rng.standard_normal(document.size)
    return reference, reference + loss + 0.02 * rng.standard_normal(document.size), document


def test_standard_error_is_that_of_the_ratio_estimator():
    """Cochran's linearized variance: sum over documents of (s_i - mean c_i)^2 n / (n - 1), over (sum c)^2."""
    reference, _, document = corpus(np.random.default_rng(1), 60)
    counts = np.bincount(document)
    sums = np.bincount(document, weights=reference)
    mean = sums.sum() / counts.sum()
    analytic = math.sqrt(((sums - mean * counts) ** 2).sum() * 60 / 59) / counts.sum()
    estimate = bootstrap_mean(reference, document_blocks(document))
    assert estimate.value == pytest.approx(reference.mean())
    assert estimate.se == pytest.approx(analytic, rel=0.03)


@pytest.mark.parametrize("documents", [9, 30])
def test_paired_interval_covers_the_true_difference(documents):
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(400):
        delta = paired_difference(*corpus(rng, documents))
        covered += delta.low <= 0.05 <= delta.high
    assert 0.92 <= covered / 400 <= 0.98


def test_pairing_removes_the_variation_between_documents():
    reference, candidate, document = corpus(np.random.default_rng(3), 40)
    change, alone = paired_difference(reference, candidate, document), perplexity(reference, document)
    ratio = change.exp()
    assert ratio.high - ratio.low < 0.1 * (alone.high - alone.low) / alone.value
    assert ratio.value == pytest.approx(math.exp(candidate.mean()) / math.exp(reference.mean()))
    assert change.p < 1e-6
    same = paired_difference(reference, reference.copy(), document)
    assert (same.value, same.p) == (0.0, 1.0)


def test_equal_tokens_give_equal_intervals_and_shifting_the_nll_shifts_them():
    reference, _, document = corpus(np.random.default_rng(5), 20)
    first = perplexity(reference, document)
    assert first == perplexity(reference, document)
    shifted = perplexity(reference + math.log(2), document)
    assert (shifted.low, shifted.high) == pytest.approx((2 * first.low, 2 * first.high))


def test_few_documents_fall_back_to_runs_of_tokens_that_stay_inside_a_document():
    document = np.repeat([5, 9], [1000, 700])
    blocks = document_blocks(document)
    assert blocks.label == "9 runs of 170 tokens" and blocks.counts.sum() == 1700
    for run in range(len(blocks.counts)):
        tokens = np.flatnonzero(blocks.index == run)
        assert (np.diff(tokens) == 1).all() and len(set(document[tokens])) == 1
        assert 170 <= len(tokens) < 2 * 170


@pytest.mark.parametrize("documents", range(1, 8))
def test_runs_are_never_fewer_than_eight(documents):
    rng = np.random.default_rng(documents)
    assert len(document_blocks(np.sort(rng.integers(0, documents, 16 * 15))).counts) >= 8


def test_a_sample_without_blocks_has_no_interval():
    estimate = perplexity(np.linspace(1, 2, 100), np.zeros(100, dtype=int))
    assert estimate.value == pytest.approx(math.exp(1.5))
    assert math.isnan(estimate.low) and math.isnan(estimate.high)


def test_non_finite_nll_is_never_a_number_and_other_texts_are_refused():
    reference, candidate, document = corpus(np.random.default_rng(6), 10)
    candidate[3] = math.inf
    assert math.isnan(paired_difference(reference, candidate, document).exp().value)
    with pytest.raises(ValueError, match="broadcast"):
        paired_difference(reference, candidate[1:], document)


def test_float32_nll_is_summed_in_float64():
    nll = np.full(2_000_000, 3.1, dtype=np.float32)
    estimate = perplexity(nll, np.arange(2_000_000) // 100_000)
    assert estimate.value == pytest.approx(math.exp(float(np.float32(3.1))), rel=1e-12)


def test_normalizations_are_one_loss_in_four_units():
    every = normalizations(60.0, tokens=12, words=6, utf8_bytes=39)
    assert (every["ppl"], every["word_ppl"]) == pytest.approx((math.exp(5), math.exp(10)))
    assert every["bits_per_byte"] == pytest.approx(math.log2(every["byte_ppl"]))


def test_full_agreement_is_not_certainty():
    full = agreement(np.ones(500, dtype=bool), np.arange(500) // 25)
    assert (full.value, full.high) == (1.0, 1.0)
    assert full.low == pytest.approx(1 - 3.69 / 500, abs=1e-4)  # -ln 0.025 = 3.69
    none = agreement(np.zeros(500, dtype=bool), np.arange(500) // 25)
    assert (none.low, none.high) == pytest.approx((0.0, 1 - full.low))


def test_agreement_interval_covers():
    rng = np.random.default_rng(9)
    document = np.repeat(np.arange(25), 40)
    covered = 0
    for _ in range(300):
        rates = rng.beta(45, 5, 25)  # mean 0.9
        share = agreement(rng.random(1000) < rates[document], document)
        covered += share.low <= 0.9 <= share.high
    assert 0.92 <= covered / 300 <= 0.98


# -------------------------------------------------------------------------------------------------------------- text


def test_divergence_and_agreement_curve():
    reference = [1, 2, 3, 4]
    others = [[1, 2, 3, 4], [9, 2, 3, 4], [1, 2, 9, 4], [1, 2]]
    first = [first_divergence(reference, other) for other in others]
    assert first == [None, 0, 2, 2]
    assert agreement_curve(first, 4).tolist() == [1.0, 0.75, 0.75, 0.25, 0.25]


def test_median_divergence_counts_texts_that_never_diverge():
    assert median_divergence([5, None, 3]) == 5  # not 4, the median of those that diverge
    assert median_divergence([4, 7, None, None, 1]) == 7
    assert math.isnan(median_divergence([4, None])) and math.isnan(median_divergence([None]))


def test_repetition():
    assert distinct_n([1, 2, 3, 4], 2) == 1.0
    assert distinct_n([7] * 11, 2) == 0.1
    assert 1 - distinct_n([1, 2] * 10, 4) == pytest.approx(1 - 2 / 17)
    assert math.isnan(distinct_n([1], 2))
