"""Paired quality, divergences and text statistics against closed forms and simulation."""

import math

import numpy as np
import pytest
from llmstudy.stats.bootstrap import bootstrap_mean, document_blocks
from llmstudy.stats.conventions import conventions, count_bytes, count_words
from llmstudy.stats.divergence import agreement, summarise_kl, summarise_true_token
from llmstudy.stats.paired import compare_nll, perplexity
from llmstudy.stats.percentile import percentile_if_supported
from llmstudy.stats.text import (
    agreement_curve,
    distinct_n,
    exact_match,
    first_divergence,
    median_divergence,
    repetition_rate,
)


def corpus(rng, documents, *, spread=0.5, effect=0.05, effect_spread=0.02):
    """Reference and candidate NLL of documents of 20 to 80 tokens that differ in level and in the candidate's loss."""
    lengths = rng.integers(20, 80, documents)
    document = np.repeat(np.arange(documents), lengths)
    level = (3 + spread * rng.standard_normal(documents))[document]
    loss = (effect + effect_spread * rng.standard_normal(documents))[document]
    reference = level + 0.5 * rng.standard_normal(document.size)
    return reference, reference + loss + 0.02 * rng.standard_normal(document.size), document


def test_standard_error_is_that_of_the_ratio_estimator():
    """Cochran's linearised variance: sum over documents of (s_i - mean c_i)^2 n / (n - 1), over (sum c)^2."""
    reference, _, document = corpus(np.random.default_rng(1), 60)
    counts = np.bincount(document)
    sums = np.bincount(document, weights=reference)
    mean = sums.sum() / counts.sum()
    analytic = math.sqrt(((sums - mean * counts) ** 2).sum() * 60 / 59) / counts.sum()
    estimate = bootstrap_mean(reference, document_blocks(document), resamples=20_000)
    assert estimate.value == pytest.approx(reference.mean())
    assert estimate.se == pytest.approx(analytic, rel=0.03)


@pytest.mark.parametrize("documents", [9, 30])
def test_paired_interval_covers_the_true_difference(documents):
    rng = np.random.default_rng(2)
    covered = 0
    for simulation in range(400):
        reference, candidate, document = corpus(rng, documents)
        delta = compare_nll(reference, candidate, document, resamples=2000, seed=simulation).delta_nll
        covered += delta.low <= 0.05 <= delta.high
    assert 0.92 <= covered / 400 <= 0.98


def test_pairing_removes_the_variation_between_documents():
    reference, candidate, document = corpus(np.random.default_rng(3), 40)
    paired = compare_nll(reference, candidate, document)
    alone = perplexity(reference, document)
    assert paired.ppl_ratio.high - paired.ppl_ratio.low < 0.1 * (alone.high - alone.low) / alone.value
    assert paired.ppl_ratio.value == pytest.approx(math.exp(candidate.mean()) / math.exp(reference.mean()))
    assert paired.delta_nll.value == pytest.approx(math.log(paired.ppl_ratio.value))
    assert paired.delta_nll.p < 1e-6
    assert paired.blocks == "40 documents"


def test_a_model_against_itself_differs_by_nothing():
    reference, _, document = corpus(np.random.default_rng(4), 10)
    same = compare_nll(reference, reference.copy(), document)
    assert (same.ppl_ratio.value, same.delta_nll.p) == (1.0, 1.0)


def test_equal_seeds_give_equal_intervals_and_shifting_the_nll_shifts_them():
    reference, _, document = corpus(np.random.default_rng(5), 20)
    first, again = perplexity(reference, document, seed=7), perplexity(reference, document, seed=7)
    assert first == again
    assert first != perplexity(reference, document, seed=8)
    shifted = perplexity(reference + math.log(2), document, seed=7)
    assert (shifted.low, shifted.high) == pytest.approx((2 * first.low, 2 * first.high))


def test_few_documents_fall_back_to_runs_of_tokens_that_stay_inside_a_document():
    document = np.repeat([5, 9], [1000, 700])
    blocks = document_blocks(document)
    assert blocks.label == "9 runs of 170 tokens"
    for run in range(len(blocks.counts)):
        tokens = np.flatnonzero(blocks.index == run)
        assert (np.diff(tokens) == 1).all() and len(set(document[tokens])) == 1
        assert 170 <= len(tokens) < 2 * 170
    assert blocks.counts.sum() == 1700


@pytest.mark.parametrize("documents", range(1, 8))
def test_runs_are_never_fewer_than_eight(documents):
    rng = np.random.default_rng(documents)
    blocks = document_blocks(np.sort(rng.integers(0, documents, 16 * 15)))
    assert len(blocks.counts) >= 8


def test_a_sample_without_blocks_has_no_interval():
    nll = np.linspace(1, 2, 100)
    estimate = perplexity(nll, np.zeros(100, dtype=int))
    assert estimate.value == pytest.approx(math.exp(1.5))
    assert math.isnan(estimate.low) and math.isnan(estimate.high)


def test_non_finite_nll_is_never_a_number_and_other_texts_are_refused():
    reference, candidate, document = corpus(np.random.default_rng(6), 10)
    candidate[3] = math.inf
    assert math.isnan(compare_nll(reference, candidate, document).ppl_ratio.value)
    with pytest.raises(ValueError, match="not the same text"):
        compare_nll(reference, candidate[1:], document)


def test_float32_nll_is_summed_in_float64():
    nll = np.full(2_000_000, 3.1, dtype=np.float32)
    estimate = perplexity(nll, np.arange(2_000_000) // 100_000)
    assert estimate.value == pytest.approx(math.exp(float(np.float32(3.1))), rel=1e-12)


def test_conventions_are_one_loss_in_four_units():
    text = "Größe zählt, sagt man.\n\nNicht immer."
    assert (count_words(text), count_bytes(text)) == (6, 39)
    found = conventions(60.0, tokens=12, words=6, byte_count=39)
    assert found.token_ppl == pytest.approx(math.exp(5))
    assert found.word_ppl == pytest.approx(math.exp(10))
    assert found.bits_per_byte == pytest.approx(math.log2(found.byte_ppl))
    with pytest.raises(ValueError, match="words"):
        conventions(60.0, tokens=12, words=0, byte_count=39)


def test_kl_summary_of_an_exponential_sample():
    kl = np.random.default_rng(8).exponential(0.02, 40_000)
    found = summarise_kl(kl, np.repeat(np.arange(40), 1000))
    assert found.mean.low < 0.02 < found.mean.high
    for percentile, share in ((found.median, 0.5), (found.p90, 0.1), (found.p99, 0.01), (found.p99_9, 0.001)):
        assert percentile == pytest.approx(-0.02 * math.log(share), rel=0.1)
    assert found.maximum == kl.max()


def test_percentiles_need_ten_observations_beyond():
    sample = np.arange(1000.0)
    assert percentile_if_supported(sample, 99) == pytest.approx(np.percentile(sample, 99))
    assert math.isnan(percentile_if_supported(sample[:999], 99))
    assert math.isnan(percentile_if_supported(sample, 0.9))
    assert not math.isnan(percentile_if_supported(np.arange(10_000.0), 99.9))
    with pytest.raises(ValueError, match="between 0 and 100"):
        percentile_if_supported(sample, 100)


def test_true_token_summary_is_a_difference_of_probabilities():
    reference, candidate = np.full(400, 0.5), np.tile([0.4, 0.7], 200)
    found = summarise_true_token(-np.log(reference), -np.log(candidate), np.arange(400) // 20)
    assert found.mean.value == pytest.approx(0.05)
    assert found.rms == pytest.approx(math.sqrt((0.01 + 0.04) / 2))
    assert (found.p5, found.p95) == pytest.approx((-0.1, 0.2))
    assert math.isnan(found.p1)


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
        share = agreement(rng.random(1000) < rates[document], document, resamples=2000)
        covered += share.low <= 0.9 <= share.high
    assert 0.92 <= covered / 300 <= 0.98


def test_divergence_and_agreement_curve():
    reference = [1, 2, 3, 4]
    others = [[1, 2, 3, 4], [9, 2, 3, 4], [1, 2, 9, 4], [1, 2]]
    found = [first_divergence(reference, other) for other in others]
    assert found == [None, 0, 2, 2]
    assert agreement_curve(found, 4).tolist() == [1.0, 0.75, 0.75, 0.25, 0.25]
    assert exact_match(found) == 0.25
    with pytest.raises(ValueError, match="prompt"):
        exact_match([])


def test_median_divergence_counts_texts_that_never_part():
    assert median_divergence([5, None, 3]) == 5  # not 4, the median of those that part
    assert median_divergence([4, 7, None, None, 1]) == 7
    assert math.isnan(median_divergence([4, None])) and math.isnan(median_divergence([None]))
    with pytest.raises(ValueError, match="prompt"):
        median_divergence([])


def test_repetition():
    assert distinct_n([1, 2, 3, 4], 2) == 1.0
    assert distinct_n([7] * 11, 2) == 0.1
    assert repetition_rate([1, 2] * 10, 4) == pytest.approx(1 - 2 / 17)
    assert math.isnan(distinct_n([1], 2))
