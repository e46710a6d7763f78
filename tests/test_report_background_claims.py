"""Figures that the background chapters state, read from their text and computed here a second time."""

import math
import re
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


def llama(dim, heads, layers, ffn, kv_heads=None):
    """A model with untied embeddings, no biases and 32 000 tokens."""
    return Shape(dim, ffn, layers, heads, kv_heads or heads, dim // heads, 32000, tied=False)


SEVEN, SEVENTY = llama(4096, 32, 32, 11008), llama(8192, 64, 80, 28672, kv_heads=8)
SMALL = Shape(576, 1536, 30, 9, 3, 64, 49152, tied=True)  # SmolLM2-135M


def spaced(number):
    """Digits in groups of three, as the chapters write them."""
    return f"{number:,}".replace(",", " ")


@pytest.mark.parametrize("row", rows_of("llama", "| model | $d$"), ids=lambda row: row[0])
def test_llama_shapes_have_the_published_parameter_counts(row):
    dim, heads, layers, ffn, kv_heads = map(int, row[1:6])
    counted = llama(dim, heads, layers, ffn, kv_heads).parameters
    assert counted == pytest.approx(float(row[-1].removesuffix("B")) * 1e9, rel=0.02)
    wider, multiple = (1.3, 4096) if kv_heads < heads else (1, 256)  # as the released code rounds
    assert ffn == math.ceil(2 / 3 * 4 * dim * wider / multiple) * multiple


def test_parameters_in_bytes():
    text = text_of("llama")
    assert f"{spaced(SEVEN.parameters)} for the 7B, {SEVEN.parameters * 2 / 2**30:.2f} GiB" in text
    size = SEVENTY.parameters * 2 / 1e9
    assert f"{spaced(SEVENTY.parameters)}, or {size:.0f} GB: a device of 80 GB holds half" in text
    assert size / 2 < 80 < size


def test_shares_of_the_linear_layers():
    text = text_of("transformer")
    share = {
        shape: 1 - shape.vocabulary * shape.hidden * (2 - shape.tied) / shape.parameters for shape in (SEVEN, SMALL)
    }
    assert f"hold {share[SEVEN]:.0%} of LLaMA 7B".replace("%", " %") in text
    assert f"they hold {share[SMALL]:.0%};".replace("%", " %") in text
    assert f"leave {1 - share[SMALL] / 2:.2f} of its memory" in text  # of 16 bits, with the scales left out


def test_training_time_of_the_65b_model():
    days = 1.4e12 / (380 * 2048) / 86400
    assert f"about {days:.0f} days" in text_of("llama")


def test_data_mixture_adds_up():
    mixture = re.search(r"LLaMA's text is (.*?) \[\[6, Table 1", text_of("llama"))[1]
    shares = re.findall(r"([\d.]+) %", mixture)
    assert len(shares) == 7 and sum(map(float, shares)) == pytest.approx(100)


@pytest.mark.parametrize(
    ("layers", "kv_heads", "head_dim", "claim"),
    [(32, 32, 128, "512 KiB per token"), (80, 8, 128, "320 KiB"), (30, 3, 64, "22.5 KiB")],
)
def test_kv_cache_sizes(layers, kv_heads, head_dim, claim):
    assert claim in text_of("causal")
    assert 2 * layers * kv_heads * head_dim * 2 / 1024 == float(claim.split()[0])  # keys and values of 2 bytes


def test_ridge_of_the_h200():
    assert round(989e12 / 4.8e12) == 206
    assert "about 206 FLOP per byte" in text_of("causal")


def test_attention_equals_linears_at_six_widths():
    dim = 4096
    linears, attention = 12 * dim**2 * 2, 4 * 6 * dim * dim
    assert linears == attention
    assert f"{spaced(6 * dim)} tokens" in text_of("transformer")


def test_agreement_over_32_tokens():
    assert f"$0.97^{{32}} = {0.97**32:.2f}$" in text_of("decoding")


def test_relative_error_of_gaussian_rows():
    text = text_of("quantisation")
    largest = math.sqrt(2 * math.log(2 * 4096))
    assert f"{largest / 127 / math.sqrt(12):.2%}".replace("%", " %") in text
    assert f"gives {largest / 7 / math.sqrt(12):.0%}".replace("%", " %") in text
    assert np.abs(np.random.default_rng(0).standard_normal((300, 4096))).max(axis=1).mean() < largest


def test_integer_sum_limit():
    limit = (2**31 - 1) // 127**2
    assert spaced(limit) in text_of("quantisation") and limit > SEVENTY.intermediate


def test_one_outlier_leaves_five_codes():
    scale = 60 / 127
    assert f"$s = 60/127 = {scale:.2f}$, and 5 codes" in text_of("quantisation")
    assert set(np.round(np.linspace(-1, 1, 1001) / scale)) == {-2, -1, 0, 1, 2}


def test_fp8_has_that_range_and_error():
    torch = pytest.importorskip("torch")
    text = text_of("quantisation")
    assert f"reaches {torch.finfo(torch.float8_e4m3fn).max:.0f};" in text
    assert spaced(int(torch.finfo(torch.float8_e5m2).max)) in text
    values = torch.logspace(-6, math.log2(448), 20001, base=2, dtype=torch.float64)
    errors = (values.to(torch.float8_e4m3fn).double() / values - 1).abs()
    assert 0.9 / 16 < errors.max() <= 1 / 16 and "at most 1/16 of it" in text
    below = torch.tensor(1.4 * 2**-9, dtype=torch.float64)  # beside 2 ** -9, the smallest
    assert (below.to(torch.float8_e4m3fn).double() / below - 1).abs() > 1 / 16


def test_bits_per_weight():
    text = text_of("quantisation")
    for bits in (8 + 32 / 4096, 4 + 32 / 64, 4 + 8 / 64 + 32 / (64 * 256)):
        assert re.search(rf"\b{re.escape(f'{bits:.4g}')}\b", text)


def test_waits_of_a_token():
    assert f"waits {7 * SEVEN.layers} times per token" in text_of("quantisation")


def test_nf4_levels_are_those_of_the_library():
    functional = pytest.importorskip("bitsandbytes.functional")
    share, quantile = float(re.search(r"\$c = ([\d.]+)\$", text_of("quantisation"))[1]), NormalDist().inv_cdf
    assert share == pytest.approx(0.5 - (1 / 32 + 1 / 30) / 2, abs=5e-5)
    positive = [quantile(0.5 + share * j / 8) for j in range(1, 9)]
    negative = [-quantile(0.5 + share * j / 7) for j in range(1, 8)]
    levels = np.array(sorted([*negative, 0.0, *positive])) / max(positive)
    library = functional.get_4bit_type("nf4", device="cpu").numpy()
    assert np.allclose(levels, library, atol=5e-5)  # c has four digits


def test_flash_attention_figures():
    text = text_of("flash_attention")
    assert 32 * 4096**2 * 2 == 2**30 and "each takes 1 GiB" in text
    elements = 192 * 1024 // 2
    assert f"$M = {elements}$" in text and elements == 24 * 64**2 and "is 1/24" in text
    assert f"as much as {312 / 19.5:.0f} of those" in text
