"""Figures that the background chapters state, read from their text and computed here a second time."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from conftest import REPOSITORY
from llmstudy.llama import Shape

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


def llama_parameters(dim, heads, layers, ffn, kv_heads=None):
    """The library's count of untied embeddings, no biases and 32 000 tokens."""
    return Shape(dim, ffn, layers, heads, kv_heads or heads, dim // heads, 32000, tied=False).parameters


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
    assert f"about {days:.0f} days" in text_of("llama")


def test_data_mixture_adds_up():
    rows = rows_of("llama", "| source | sampling share")
    assert sum(float(row[1].removesuffix("%")) for row in rows) == pytest.approx(100)


@pytest.mark.parametrize(
    ("layers", "kv_heads", "head_dim", "claim"),
    [(32, 32, 128, "512 KiB per token"), (80, 8, 128, "320 KiB"), (30, 3, 64, "22.5 KiB")],
)
def test_kv_cache_sizes(layers, kv_heads, head_dim, claim):
    assert claim in text_of("causal")
    shape = Shape(0, 0, layers, 0, kv_heads, head_dim, 0, tied=False)
    assert shape.kv_bytes_per_token(2) / 1024 == float(claim.split()[0])


def test_ridge_of_the_h200():
    assert round(989e12 / 4.8e12) == 206
    assert "about 206 FLOP per byte" in text_of("causal")


def test_attention_equals_linears_at_six_widths():
    dim = 4096
    linears, attention = 12 * dim**2 * 2, 4 * 6 * dim * dim
    assert linears == attention
    assert f"{6 * dim:,}".replace(",", " ") in text_of("transformer")


def test_agreement_over_32_tokens():
    assert f"$0.97^{{32}} = {0.97**32:.2f}$" in text_of("decoding")


def test_relative_error_of_gaussian_rows():
    text = text_of("quantisation")
    stated = math.sqrt(2 * math.log(4096)) / math.sqrt(12)
    assert f"{stated / 127:.2%}".replace("%", " %") in text and f"{stated / 7:.0%}".replace("%", " %") in text


def test_integer_sum_limit():
    limit = (2**31 - 1) // 127**2
    assert f"{limit:,}".replace(",", " ") in text_of("quantisation") and limit > 28672


def test_one_outlier_leaves_five_codes():
    scale = 60 / 127
    assert f"$s = 60/127 = {scale:.2f}$" in text_of("quantisation")
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


def test_flash_attention_figures():
    assert 32 * 4096**2 * 2 == 2**30
    elements = 192 * 1024 // 2
    assert f"$M = {elements}$" in text_of("flash_attention") and elements == 24 * 64**2
    assert 312 / 19.5 == 16
