"""Figures and properties that the background chapters state: counted, computed or simulated here a second time."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from conftest import REPOSITORY

BACKGROUND = REPOSITORY / "workflow/report/background"


def rows_of(chapter, header):
    """Cells of a chapter's Markdown table whose header line starts with ``header``."""
    lines = (BACKGROUND / f"{chapter}.md.j2").read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(header))
    body = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        body.append([cell.strip() for cell in line.strip("|").split("|")])
    return body


def text_of(name):
    """A chapter as one line, so that a claim can be looked for whatever its line breaks."""
    return " ".join((BACKGROUND / f"{name}.md.j2").read_text(encoding="utf-8").split())


def llama_parameters(dim, heads, layers, ffn, kv_heads=None, vocabulary=32000):
    """Counted matrix by matrix, untied embeddings, no biases."""
    width = dim // heads * (kv_heads or heads)
    attention = dim * dim + dim * width + dim * width + dim * dim
    block = attention + 3 * dim * ffn + 2 * dim
    return vocabulary * dim + layers * block + dim + dim * vocabulary


@pytest.mark.parametrize("row", rows_of("llama", "| model | $d$"), ids=lambda row: row[0])
def test_llama_shapes_have_the_published_parameter_counts(row):
    dim, heads, layers, ffn = map(int, row[1:5])
    assert llama_parameters(dim, heads, layers, ffn) == pytest.approx(float(row[-1].removesuffix("B")) * 1e9, rel=0.02)
    assert ffn == math.ceil(2 / 3 * 4 * dim / 256) * 256


def test_other_parameter_counts():
    text = text_of("llama")
    seven, seventy = llama_parameters(4096, 32, 32, 11008), llama_parameters(8192, 64, 80, 28672, kv_heads=8)
    assert f"{seven:,}".replace(",", " ") in text
    assert f"{seven * 2 / 2**30:.2f} GiB" in text
    assert seventy == pytest.approx(70e9, rel=0.02) and seventy * 2 > 80e9
    assert abs(28672 / 22016 - 1.3) < 0.01


def test_training_time_of_the_65b_model():
    days = 1.4e12 / (380 * 2048) / 86400
    assert round(days) == 21


def test_data_mixture_adds_up():
    rows = rows_of("llama", "| source | sampling share")
    assert sum(float(row[1].removesuffix("%")) for row in rows) == pytest.approx(100)


@pytest.mark.parametrize(
    ("layers", "kv_heads", "head_dim", "claim"),
    [(32, 32, 128, "512 KiB per token"), (80, 8, 128, "320 KiB"), (30, 3, 64, "22.5 KiB")],
)
def test_kv_cache_sizes(layers, kv_heads, head_dim, claim):
    assert claim in text_of("causal")
    assert 2 * layers * kv_heads * head_dim * 2 / 1024 == float(claim.split()[0])


@pytest.mark.parametrize(
    ("rows", "dtype", "intensity"), [(1, "bfloat16", 1), (512, "bfloat16", 512), (1, "float32", 0.5)]
)
def test_arithmetic_intensity_of_a_linear(rows, dtype, intensity):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    weight = torch.empty(96, 64, dtype=getattr(torch, dtype), device="meta")
    with FlopCounterMode(display=False) as counter:
        torch.nn.functional.linear(torch.empty(rows, 64, dtype=weight.dtype, device="meta"), weight)
    assert counter.get_total_flops() / (weight.numel() * weight.element_size()) == intensity


def test_ridge_of_the_h200():
    assert round(989e12 / 4.8e12) == 206
    assert "about 206 FLOP per byte" in text_of("causal")


def test_attention_equals_linears_at_six_widths():
    dim = 4096
    linears, attention = 12 * dim**2 * 2, 4 * 6 * dim * dim
    assert linears == attention
    assert f"{6 * dim:,}".replace(",", " ") in text_of("transformer")


def test_causal_mask_before_the_softmax_not_after():
    scores = np.random.default_rng(0).normal(size=(5, 5))
    ones = np.tril(np.ones((5, 5)))
    masked = np.exp(np.where(ones == 1, scores, -np.inf))
    masked /= masked.sum(axis=1, keepdims=True)
    assert np.all(masked[ones == 0] == 0) and np.allclose(masked.sum(axis=1), 1)
    multiplied = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True) * ones
    assert np.all(multiplied.sum(axis=1)[:-1] < 1)


def sinusoids(position, dim=64):
    frequency = 10000.0 ** (-2 * np.arange(dim // 2) / dim)
    return np.sin(frequency * position), np.cos(frequency * position), frequency


def test_shift_of_sinusoidal_positions_is_a_rotation():
    for position, shift in ((0, 5), (17, 3), (900, 124)):
        sine, cosine, frequency = sinusoids(position)
        moved_sine, moved_cosine, _ = sinusoids(position + shift)
        angle = frequency * shift
        assert np.allclose(np.cos(angle) * sine + np.sin(angle) * cosine, moved_sine)
        assert np.allclose(-np.sin(angle) * sine + np.cos(angle) * cosine, moved_cosine)


def test_rotary_scores_depend_on_distance_alone():
    generator = np.random.default_rng(1)
    query, key = (generator.normal(size=32) + 1j * generator.normal(size=32) for _ in range(2))
    frequency = sinusoids(0)[2]

    def score(at_query, at_key):
        return np.real(np.vdot(query * np.exp(1j * at_query * frequency), key * np.exp(1j * at_key * frequency)))

    assert score(3, 10) == pytest.approx(score(103, 110))
    assert score(3, 10) != pytest.approx(score(3, 11))


def test_argmax_survives_errors_below_half_the_margin():
    generator = np.random.default_rng(2)
    logits = generator.normal(size=(2000, 50))
    ordered = np.sort(logits, axis=1)
    half_margin = (ordered[:, -1] - ordered[:, -2])[:, None] / 2
    noise = generator.uniform(-1, 1, size=logits.shape)
    assert np.array_equal((logits + 0.999 * half_margin * noise).argmax(1), logits.argmax(1))
    worst = np.where(logits == ordered[:, -1:], -1, 1)
    assert np.all((logits + 1.001 * half_margin * worst).argmax(1) != logits.argmax(1))


def test_agreement_over_32_tokens():
    assert f"$0.97^{{32}} = {0.97**32:.2f}$" in text_of("decoding")


def absmax(values, top=127):
    scale = np.abs(values).max(axis=-1, keepdims=True) / top
    return np.round(values / scale) * scale, scale


def test_absmax_error_is_at_most_half_a_step():
    generator = np.random.default_rng(3)
    for values in (generator.normal(size=(64, 1000)), generator.standard_cauchy(size=(64, 1000))):
        restored, scale = absmax(values)
        assert np.all(np.abs(restored - values) <= scale / 2 * (1 + 1e-12))
        assert np.max(np.abs(restored - values) / scale) > 0.49


def test_zero_point_error_is_at_most_half_a_step_and_codes_fit_a_byte():
    values = np.random.default_rng(4).uniform(3, 9, size=(64, 1000))
    scale = (values.max(1, keepdims=True) - values.min(1, keepdims=True)) / 255
    zero = -128 - np.round(values.min(1, keepdims=True) / scale)
    codes = np.round(values / scale) + zero
    assert codes.min() == -128 and codes.max() == 127
    assert np.all(np.abs(scale * (codes - zero) - values) <= scale / 2 * (1 + 1e-9))


def test_dot_product_error_has_the_stated_variance():
    generator = np.random.default_rng(5)
    weights, inputs = generator.normal(size=(20000, 256)), generator.normal(size=256)
    restored, scale = absmax(weights)
    errors = (restored - weights) @ inputs / scale[:, 0]
    assert errors.var() == pytest.approx(inputs @ inputs / 12, rel=0.05)


def test_relative_error_of_gaussian_rows():
    text = text_of("quantisation")
    stated = math.sqrt(2 * math.log(4096)) / math.sqrt(12)
    assert f"{stated / 127:.2%}".replace("%", " %") in text and f"{stated / 7:.0%}".replace("%", " %") in text
    weights = np.random.default_rng(6).normal(size=(200, 4096))
    restored, _ = absmax(weights)
    assert (restored - weights).std() == pytest.approx(stated / 127, rel=0.15)


def test_integer_sum_limit():
    limit = (2**31 - 1) // 127**2
    assert f"{limit:,}".replace(",", " ") in text_of("quantisation") and limit > 28672


def test_vector_wise_scales_factor_out_and_decomposition_helps():
    generator = np.random.default_rng(7)
    activations, weights = generator.normal(size=(32, 256)), generator.normal(size=(64, 256))
    activations[:, 9] *= 60
    exact = activations @ weights.T

    def product(columns):
        rows, row_scale = absmax(activations[:, columns])
        outputs, output_scale = absmax(weights[:, columns])
        integers = np.rint(rows / row_scale) @ np.rint(outputs / output_scale).T
        assert np.allclose(rows @ outputs.T, integers * row_scale * output_scale.T)
        return integers * row_scale * output_scale.T

    everything, inliers = np.ones(256, bool), np.abs(activations).max(0) < 6
    outliers = activations[:, ~inliers] @ weights[:, ~inliers].T
    plain, mixed = np.abs(product(everything) - exact).mean(), np.abs(product(inliers) + outliers - exact).mean()
    assert mixed < plain / 5


def test_one_outlier_leaves_five_codes():
    scale = 60 / 127
    assert f"{scale:.2f}" == "0.47"
    assert set(np.round(np.linspace(-1, 1, 1001) / scale)) == {-2, -1, 0, 1, 2}


def test_bits_per_weight():
    rows = {row[0]: float(row[1]) for row in rows_of("quantisation", "| precision | bits")}
    expected = [16, 8 + 32 / 4096, 4 + 32 / 64, 4 + 8 / 64 + 32 / (64 * 256)]
    assert list(rows.values()) == pytest.approx(expected, abs=5e-4)


def test_nf4_levels_are_those_of_the_library():
    functional = pytest.importorskip("bitsandbytes.functional")
    delta, quantile = (1 / 32 + 1 / 30) / 2, NormalDist().inv_cdf
    positive = [quantile(0.5 + (0.5 - delta) * j / 8) for j in range(1, 9)]
    negative = [-quantile(0.5 + (0.5 - delta) * j / 7) for j in range(1, 8)]
    levels = np.array(sorted([*negative, 0.0, *positive])) / max(positive)
    library = functional.get_4bit_type("nf4", device="cpu").numpy()
    assert np.allclose(levels, library, atol=1e-6)


def merge(left, right):
    top = max(left[0], right[0])
    down_left, down_right = math.exp(left[0] - top), math.exp(right[0] - top)
    return top, down_left * left[1] + down_right * right[1], down_left * left[2] + down_right * right[2]


def test_online_softmax_is_softmax_in_any_order():
    generator = np.random.default_rng(8)
    scores, values = generator.normal(scale=300, size=64), generator.normal(size=(64, 16))
    weights = np.exp(scores - scores.max())
    expected = weights @ values / weights.sum()
    blocks = []
    for part in np.split(np.arange(64), [5, 6, 30]):
        exponentials = np.exp(scores[part] - scores[part].max())
        blocks.append((scores[part].max(), exponentials.sum(), exponentials @ values[part]))
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        state = blocks[order[0]]
        for index in order[1:]:
            state = merge(state, blocks[index])
        assert np.allclose(state[2] / state[1], expected)
    tree = merge(merge(blocks[0], blocks[1]), merge(blocks[2], blocks[3]))
    assert np.allclose(tree[2] / tree[1], expected)


def test_flash_attention_figures():
    assert 32 * 4096**2 * 2 == 2**30
    elements = 192 * 1024 // 2
    assert f"$M = {elements}$" in text_of("flash_attention") and elements == 24 * 64**2
    assert 312 / 19.5 == 16
