"""Figures: readable on both themes, the same bytes for the same tables, and the numbers that they compute."""

import dataclasses
import re
import shutil

import hand_made
import numpy as np
import pytest
from conftest import REPOSITORY
from llmstudy import tables
from llmstudy.llama import Shape
from llmstudy.models import precisions
from llmstudy.report import answer, diagnostics, figures, memory, quality, speed, style
from llmstudy.report.study import load
from llmstudy.tables import columns

BACKGROUNDS = ("#ffffff", "#0d1117")  # GitHub's light and dark page
COLOR = re.compile(r"#[0-9a-f]{6}\b")


def luminance(color):
    """WCAG 2 relative luminance of #rrggbb."""
    parts = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def drawn(name, study):
    """A figure of a study."""
    with style.look():
        figure = figures.drawn(name, figures.rows(name, study))
        figure.draw_without_rendering()
    return figure


@pytest.mark.parametrize("name", figures.FIGURES)
def test_drawn_readable_and_reproducible(name, finished, tmp_path):
    contents = []
    for attempt in ("first", "second"):
        svg, png = tmp_path / f"{attempt}.svg", tmp_path / f"{attempt}.png"
        figures.draw(name, finished / "results/default", svg, png)
        contents.append((svg.read_bytes(), png.read_bytes()))
    assert contents[0] == contents[1], "equal tables must give equal bytes"
    text = contents[0][0].decode()
    assert "<text" not in text, "text must be paths: a reader may not have the font"
    assert len(text) > 5000 and "<dc:date>" not in text
    used = set(COLOR.findall(re.sub(r"<g id=\"QuadMesh.*?</g>", "", text, flags=re.DOTALL)))
    if name != "outliers":  # its color bar is a scale, and every cell is beside others
        assert not {color for color in used for page in BACKGROUNDS if contrast(color, page) < 3}
    assert style.INK in used


@pytest.mark.parametrize("name", figures.FIGURES)
def test_every_figure_has_a_caption_and_tables(name):
    assert (REPOSITORY / "workflow/report/captions" / f"{name}.rst").read_text().strip()
    assert set(figures.FIGURES[name].tables) <= set(tables.every())


def test_no_two_precisions_share_a_color_known_or_not():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    known = [precisions.get(name).color for name in precisions.names()]
    assert [style.color(name) for name in precisions.names()] == known
    assert not set(style.SPARE) & set(known)
    for name in ("nf4-dq", "fp8", "gptq-4bit", "llm-int8-t2.50"):
        assert style.color(name) in style.SPARE and style.color(name) != style.color("fp32")
    for color in style.SPARE:
        assert min(contrast(color, page) for page in BACKGROUNDS) >= 3


def test_nothing_to_draw_is_said_in_the_picture(tmp_path):
    folder = hand_made.write_study(tmp_path / "speed_only", models=("llama-2-7b",))
    svg = tmp_path / "divergence.svg"
    figures.draw("divergence", folder, svg, tmp_path / "divergence.png")
    assert svg.stat().st_size and not len(figures.rows("divergence", load(folder)))
    (folder / "figures").mkdir()
    for name in ("divergence", "speed"):
        shutil.copy(svg, folder / "figures" / f"{name}.svg")
    assert figures.shown(load(folder)) == ["speed"]


def test_unfinished_measurements_leave_every_figure_drawable(tmp_path):
    """All of one model failed, and one precision of the other."""
    folder = hand_made.write_study(tmp_path / "study", models=("smollm2-135m", "llama-2-7b"))
    for name in ("processes", "memory", "quality"):
        table = columns.read_table(folder / f"{name}.csv")
        failed = (table["model"] == "llama-2-7b") | (table["precision"] == "fp16")
        table.loc[failed, ["status", "reason"]] = ["timeout", "too slow"]
        kept = [*columns.WORKLOAD, "corpus", "protocol", "repeat", *(one.name for one in columns.SHARED)]
        table.loc[failed, [column for column in table if column not in kept]] = np.nan
        table.to_csv(folder / f"{name}.csv", index=False)
    hand_made.derive(folder, ("smollm2-135m", "llama-2-7b"))
    study = load(folder)
    for name in figures.FIGURES:
        assert len(figures.rows(name, study)), name
        drawn(name, study)


def test_floor_is_bytes_over_bandwidth(h200):
    rows = speed.bandwidth_floor_rows(h200).set_index(["model", "precision", "runtime"])
    row = rows.loc[("llama-2-7b", "bf16", "graph")]
    # 6.74e9 parameters of 2 bytes and 512 tokens of 0.5 MB, at 4.28e12 bytes a second
    assert row["floor_ms"] == pytest.approx((6.74e9 * 2 + 512 * 5e5) / 4.28e12 * 1e3, rel=1e-4)
    assert row["tpot_ms"] > row["floor_ms"]


def test_roofline_points_are_operations_over_time_and_bytes(h200):
    rows = speed.roofline_rows(h200)
    decode = rows[rows["phase"] == "decode"]
    assert len(decode) and (decode["tflops"] <= decode["intensity"] * decode["bandwidth_gb_s"] / 1e3).all()
    row = rows.set_index(["model", "precision", "runtime", "phase"]).loc[("llama-2-7b", "bf16", "graph", "prefill")]
    operations = Shape.of(hand_made.ARCHITECTURES["llama-2-7b"]).flops(512, 256.5)
    assert row["intensity"] == pytest.approx(operations / row["step_bytes"])
    assert row["tflops"] == pytest.approx(operations / row["ttft_ms"] / 1e9)


def test_failed_configurations_keep_their_place_in_the_figure_of_times(h200):
    rows = speed.speed_rows(h200).set_index(["model", "precision", "runtime", "attention"])
    assert rows.loc[("llama-2-70b", "bf16", "graph", "sdpa"), "status"] == "oom"
    assert len(rows) == len(h200.table("summary"))


def test_every_interval_of_the_figures_is_that_of_the_table(h200):
    speeds = h200.table("speed").set_index(["model", "precision", "attention", "runtime", "batch", "prompt_tokens"])
    row = speed.speed_rows(h200).set_index(["model", "precision", "attention", "runtime"]).loc["llama-2-7b"]
    ends = ["ttft_ms", "ttft_ms_low", "tpot_ms_high"]
    for key in [("nf4", "sdpa", "generate"), ("bf16", "sdpa", "graph")]:
        expected = speeds.loc[("llama-2-7b", *key, 1, 512), ends].tolist()
        assert row.loc[key, ends].tolist() == pytest.approx(expected, rel=1e-5)


def test_the_batch_figure_takes_the_prompt_length_with_most_batch_sizes(h200):
    rows = speed.batch_rows(h200)
    assert set(rows["prompt_tokens"]) == {512} and set(rows["batch"]) == {1, 8, 32}
    assert not rows.duplicated(["model", "precision", "runtime", "batch"]).any()
    single = h200.table("speed").query("batch == 1")
    assert not len(speed.batch_rows(dataclasses.replace(h200, tables={"speed": single})))


def test_agreement_leaves_out_the_reference_and_what_failed(h200):
    rows = quality.agreement_rows(h200).groupby("precision").size()
    assert "bf16" not in rows and rows["nf4"] == 2 and rows["llm-int8"] == 1
    axis = drawn("agreement", h200).axes[0]
    ends = {line.get_color(): line.get_ydata() for line in axis.lines}
    assert ends[style.color("nf4")].tolist() == [100.0] * 4 + [0.0] * 45  # both differ at token 3 of 48
    assert set(ends[style.color("int8-fused")]) == {100.0}


def test_sensitivity_shows_divergence_with_the_interval_of_the_table(h200):
    layers, linears = drawn("sensitivity", h200).axes
    own = h200.table("sensitivity")
    shown = layers.lines[0].get_ydata()
    assert sorted(shown) == sorted(own.loc[(own["linear"] == "all") & (own["layer"] != "all"), "kl_nats"])
    # the divergence of the hand-made kinds falls where their delta_nll rises
    assert [label.get_text() for label in linears.get_yticklabels()][0] == "q_proj"
    table = own.assign(status="ok")
    table.loc[3, "status"] = "error"
    rows = diagnostics.sensitivity_rows(dataclasses.replace(h200, tables={"sensitivity": table}))
    assert len(rows) == len(table) - 1 and (rows["floor_nats"] == 0).all()


def test_thresholds_are_drawn_with_their_times_where_as_many_were_timed(h200):
    axes = drawn("thresholds", h200).axes
    assert len(axes) == 1 and axes[0].get_ylabel() == "perplexity lost, %"
    assert [label.get_text() for label in axes[0].get_xticklabels()][:2] == ["0\n10,183", "2\n4,096"]
    renamed = h200.table("speed").replace({"precision": {"nf4": "llm-int8-t2"}})
    same = h200.table("quality").assign(tokens=100)
    timed = dataclasses.replace(h200, tables=h200.tables | {"speed": renamed, "quality": same})
    loss, time = drawn("thresholds", timed).axes
    assert [label.get_text() for label in loss.get_xticklabels()] == ["0", "2", "4", "6", "inf"]
    assert time.get_ylabel() == "time per output token, ms"


def test_trade_off_shows_the_fastest_attention(h200):
    rows = answer.trade_off_rows(h200)
    assert not rows.duplicated(["model", "precision", "runtime"]).any()
    row = rows.set_index(["model", "precision", "runtime"]).loc[("llama-2-7b", "nf4", "generate")]
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
    ("end", "limit", "crosses"), [(129, 139, True), (100, 139, False), (139, 139, True), (150, 139, False)]
)
def test_a_number_is_not_written_across_the_device_s_limit(end, limit, crosses):
    assert memory.crosses(end, limit, width=156) is crosses
