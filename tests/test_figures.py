"""Figures: readable on both themes, the same bytes for the same tables, and the numbers that they compute."""

import dataclasses
import re
import shutil

import hand_made
import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY
from llmstudy.report import figures, selection
from llmstudy.report import study as studies
from llmstudy.report.figures import (
    agreement,
    bandwidth_floor,
    divergence,
    latency,
    plotting,
    roofline,
    sensitivity,
    style,
    trade_off,
)

BACKGROUNDS = ("#ffffff", "#0d1117")  # GitHub's light and dark page
COLOUR = re.compile(r"#[0-9a-f]{6}\b")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A study of one model: enough to look at, quick to draw."""
    return hand_made.write_study(tmp_path_factory.mktemp("results") / "small", models=("smollm2-135m",))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return studies.load(hand_made.write_study(tmp_path_factory.mktemp("results") / "h200"))


def luminance(colour):
    """WCAG 2 relative luminance of #rrggbb."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_black_and_white_is_21():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


@pytest.mark.parametrize("name", figures.FIGURES)
def test_drawn_readable_and_reproducible(name, folder, tmp_path):
    drawn = []
    for attempt in ("first", "second"):
        svg, png = tmp_path / f"{attempt}.svg", tmp_path / f"{attempt}.png"
        plotting.plot(name, folder, svg, png)
        drawn.append((svg.read_bytes(), png.read_bytes()))
    assert drawn[0] == drawn[1], "equal tables must give equal bytes"
    text = drawn[0][0].decode()
    assert "<text" not in text, "text must be paths: a reader may not have the font"
    assert len(text) > 5000 and "<dc:date>" not in text
    used = set(COLOUR.findall(re.sub(r"<g id=\"QuadMesh.*?</g>", "", text, flags=re.DOTALL)))
    faint = {colour for colour in used for page in BACKGROUNDS if contrast(colour, page) < 3}
    if name != "outliers":  # its colour bar is a scale, and every cell stands beside others
        assert not faint
    assert style.INK in used


@pytest.mark.parametrize("name", figures.FIGURES)
def test_every_figure_has_a_caption_and_its_tables_have_modules(name):
    entry = figures.FIGURES[name]
    assert (REPOSITORY / "workflow/report/captions" / f"{name}.rst").read_text().strip()
    for table in entry.tables:
        assert (REPOSITORY / "workflow/scripts/llmstudy/tables" / f"{table}.py").exists()


def test_every_precision_has_a_colour_of_its_own():
    from llmstudy.models.precisions import MODULES

    assert set(MODULES) <= set(style.PRECISIONS)
    assert len(set(style.PRECISIONS.values())) == len(style.PRECISIONS)


def test_nothing_to_draw_is_said_in_the_picture(tmp_path):
    folder = hand_made.write_study(tmp_path / "speed_only", models=("llama-2-7b",))
    svg = tmp_path / "divergence.svg"
    plotting.plot("divergence", folder, svg, tmp_path / "divergence.png")
    assert svg.stat().st_size and not len(divergence.rows(studies.load(folder)))
    (folder / "figures").mkdir()
    for name in ("divergence", "speed"):
        shutil.copy(svg, folder / "figures" / f"{name}.svg")
    assert plotting.shown(studies.load(folder)) == ["speed"]


def test_unfinished_measurements_leave_every_figure_drawable(tmp_path):
    """All of one model failed, and one precision of the other."""
    folder = hand_made.write_study(tmp_path / "study", models=("smollm2-135m", "llama-2-7b"))
    for name in ("speed", "memory", "summary"):
        table = pd.read_csv(folder / f"{name}.csv")
        failed = (table["model"] == "llama-2-7b") | (table["precision"] == "bf16")
        table.loc[failed, "status"] = "timeout"
        numbers = [
            c for c in table.columns if c.endswith(("_ms", "_gib", "_s")) or c in ("mbu", "step_bytes", "speedup")
        ]
        table.loc[failed, numbers] = np.nan
        table.to_csv(folder / f"{name}.csv", index=False)
    study = studies.load(folder)
    for name in figures.FIGURES:
        rows = figures.module(name).rows(study)
        if len(rows):
            with style.look():
                figures.module(name).draw(rows).draw_without_rendering()


def test_floor_is_bytes_over_bandwidth(study):
    rows = bandwidth_floor.rows(study).set_index(["model", "precision", "runtime"])
    row = rows.loc[("llama-2-7b", "bf16", "graph")]
    # 6.74e9 parameters of 2 bytes and 512 tokens of 0.5 MB, at 4.28e12 bytes a second
    assert row["floor_ms"] == pytest.approx((6.74e9 * 2 + 512 * 5e5) / 4.28e12 * 1e3, rel=1e-4)
    assert row["tpot_ms"] > row["floor_ms"]


def test_roofline_counts_the_published_parameters():
    """LLaMA-2-7B has 6 738 415 616 parameters: all but the embedding and 65 norms are multiplied."""
    shape = hand_made.ARCHITECTURES["llama-2-7b"]
    assert roofline.matmul_weights(shape) == 6_738_415_616 - 32000 * 4096 - 65 * 4096
    # 4 · layers · width: 2 for the scores, 2 for the weighted sum of the values
    assert roofline.attention_operations(shape, 1) == 4 * 32 * 4096


def test_no_decode_step_lies_above_the_bandwidth_roof(study):
    rows = roofline.rows(study)
    decode = rows[rows["phase"] == "decode"]
    assert len(decode) and (decode["tflops"] <= decode["intensity"] * decode["bandwidth_gb_s"] / 1e3).all()


def test_repeats_become_geometric_means_with_pooled_noise(study):
    table = study.table("processes")
    own = table[(table["model"] == "llama-2-7b") & (table["batch"] == 1) & (table["prompt_tokens"] == 512)]
    own = own[own["status"] == "ok"]
    rows = selection.over_repeats(study, own).set_index(["precision", "attention", "runtime"])
    cell = own[(own["precision"] == "nf4") & (own["attention"] == "sdpa") & (own["runtime"] == "eager")]["tpot_ms"]
    assert rows.loc[("nf4", "sdpa", "generate"), "tpot_ms"] == pytest.approx(np.exp(np.log(cell).mean()))
    summary = study.of_model("summary", "llama-2-7b").set_index(["precision", "attention", "runtime"])
    for key in rows.index:
        low, high = rows.loc[key, ["tpot_ms_low", "tpot_ms_high"]]
        assert (low, high) == pytest.approx(tuple(summary.loc[key, ["tpot_low_ms", "tpot_high_ms"]]), rel=1e-4)


def test_failed_configurations_keep_their_place_in_the_latency_figure(study):
    rows = latency.rows(study).set_index(["model", "precision", "runtime", "attention"])
    assert rows.loc[("llama-2-70b", "bf16", "graph", "sdpa"), "status"] == "oom"
    assert len(rows) == len(study.table("summary"))


def test_agreement_leaves_out_the_reference_and_what_failed(study):
    rows = agreement.rows(study).groupby("precision").size()
    assert "bf16" not in rows and rows["nf4"] == 2 and rows["llm-int8"] == 1
    with style.look():
        axis = agreement.draw(agreement.rows(study)).axes[0]
    ends = {line.get_color(): line.get_ydata() for line in axis.lines}
    assert ends[style.colour("nf4")].tolist() == [100.0] * 4 + [0.0] * 45  # both part at token 3 of 48
    assert set(ends[style.colour("int8-fused")]) == {100.0}


def test_sensitivity_shows_divergence_with_an_interval_over_its_blocks(study):
    table = study.table("sensitivity").copy()
    table.loc[0, ["kl_nats", "kl_se_nats", "blocks"]] = [0.02, 0.004, "8 documents"]
    table.loc[1, ["kl_nats", "kl_se_nats", "blocks"]] = [0.02, 0.01, "11 runs of 40 tokens"]
    table.loc[2, ["kl_nats", "kl_se_nats", "blocks"]] = [0.02, np.nan, "1 block, no interval"]
    table.loc[3, "status"] = "error"
    rows = selection.rounded_parts(dataclasses.replace(study, tables={"sensitivity": table}))
    # quantiles of Student's t with 7 and 10 degrees of freedom; the second interval would reach below 0
    assert rows.loc[0, ["kl_low_nats", "kl_high_nats"]].tolist() == pytest.approx(
        [0.02 - 2.364624 * 0.004, 0.02 + 2.364624 * 0.004]
    )
    assert rows.loc[1, ["kl_low_nats", "kl_high_nats"]].tolist() == pytest.approx([0, 0.02 + 2.228139 * 0.01])
    assert rows.loc[2, ["kl_low_nats", "kl_high_nats"]].isna().all() and len(rows) == len(table) - 1
    with style.look():
        layers, linears = sensitivity.draw(sensitivity.rows(study)).axes
    own = study.table("sensitivity")
    drawn = layers.lines[0].get_ydata()
    assert sorted(drawn) == sorted(own.loc[(own["linear"] == "all") & (own["layer"] != "all"), "kl_nats"])
    # the divergence of the hand-made kinds falls where their delta_nll rises
    assert [label.get_text() for label in linears.get_yticklabels()][0] == "q_proj"


def test_trade_off_shows_the_fastest_attention(study):
    rows = trade_off.rows(study)
    assert not rows.duplicated(["model", "precision", "runtime"]).any()
    row = rows.set_index(["model", "precision", "runtime"]).loc[("llama-2-7b", "nf4", "eager")]
    assert row["attention"] == "sdpa"


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([0.1, 0.5, 0.9], [0.1, 0.5, 0.9]),
        ([0.5, 0.5], [0.45, 0.55]),
        ([0.2, 0.25, 0.9], [0.175, 0.275, 0.9]),
        ([], []),
    ],
)
def test_labels_move_apart_no_further_than_they_must(places, expected):
    assert style.apart(places, 0.1) == pytest.approx(expected)


def test_labels_never_overlap_and_keep_their_order():
    places = sorted(np.random.default_rng(0).uniform(0, 1, 12).tolist())
    gaps = np.diff(style.apart(places, 0.07))
    assert (gaps >= 0.07 - 1e-9).all()


@pytest.mark.parametrize(
    ("end", "limit", "told"), [(129, 139, True), (100, 139, False), (139, 139, True), (150, 139, False)]
)
def test_a_number_is_not_written_across_the_device_s_limit(end, limit, told):
    from llmstudy.report.figures.memory import crosses

    assert crosses(end, limit, width=156) is told


def test_rows_that_tie_keep_their_order():
    rows = pd.DataFrame({"precision": 40 * ["nf4", "bf16"], "place": range(80)})
    for _, own in style.sort(rows).groupby("precision"):
        assert own["place"].is_monotonic_increasing


def test_the_band_of_any_change_is_drawn_for_a_model_in_16_bit_alone(study):
    at_protocol = pd.DataFrame(
        [{"model": "m", "precision": "fp32", "status": "ok", "kl_nats": 0.0012}, {"model": "m", "precision": "fp16",
          "status": "ok", "kl_nats": 0.5}]
    )  # fmt: skip
    assert selection.rounding_floor(at_protocol, "m", "bf16") == 0.0012
    assert np.isnan(selection.rounding_floor(at_protocol, "m", "fp32"))
    assert np.isnan(selection.rounding_floor(at_protocol.iloc[1:], "m", "bf16"))
    assert np.isnan(selection.rounding_floor(pd.DataFrame(), "m", "bf16"))
