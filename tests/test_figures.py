"""Figures: readable on white, the same bytes for the same tables, nothing drawn of nothing, and the right numbers."""

import dataclasses
import re

import hand_made
import numpy as np
import pandas as pd
import pytest
from llmstudy import tables
from llmstudy.models import precisions
from llmstudy.report import answer, diagnostics, figures, memory, quality, speed, style
from llmstudy.report.study import load
from llmstudy.tables import columns

COLOR = re.compile(r"#[0-9a-f]{6}\b")


def luminance(color):
    """WCAG 2 relative luminance of #rrggbb."""
    parts = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def on_white(color):
    return 1.05 / (luminance(color) + 0.05)


def changed(study, **tables):
    return dataclasses.replace(study, tables=study.tables | tables)


def drawn(name, study):
    """A figure of a study."""
    with style.look():
        figure = figures.drawn(name, figures.rows(name, study))
        figure.draw_without_rendering()
    return figure


def words(figure):
    """All that is written in a figure."""
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def test_drawn_on_white_and_reproducible(finished, tmp_path):
    for attempt in ("first", "second"):
        figures.draw(finished / "results/h200", tmp_path / attempt)
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert names == sorted(f"{name}.{kind}" for name in figures.FIGURES for kind in ("svg", "png"))
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    for path in (tmp_path / "first").glob("*.svg"):
        text = path.read_text()
        assert "<text" not in text, "text must be paths: a reader may not have the font"
        assert len(text) > 5000 and "<dc:date>" not in text and "#ffffff" in text


@pytest.mark.parametrize("name", figures.FIGURES)
def test_every_word_can_be_read_on_white(name, h200):
    figure = drawn(name, h200)
    for text in figure.findobj(lambda artist: hasattr(artist, "get_text") and artist.get_text().strip()):
        color = text.get_color()
        assert COLOR.fullmatch(color) and on_white(color) >= 4.5, (text.get_text(), color)


@pytest.mark.parametrize("name", figures.FIGURES)
def test_every_figure_has_a_caption_and_tables(name):
    assert len(figures.caption(name)) > 60 and "\n" not in figures.caption(name)
    assert set(figures.FIGURES[name].tables) <= set(tables.every())


def test_a_color_means_one_thing():
    known = [precisions.get(name).color for name in precisions.names()]
    assert [style.color(name) for name in precisions.names()] == known
    everything = [*known, *style.KERNELS.values(), *style.SPARE, style.INK, style.QUIET]
    assert len(set(everything)) == len(everything)
    assert min(map(on_white, everything)) >= 4.5
    for name in ("nf4-dq", "int2", "gptq-4bit", "llm-int8-t2.50"):
        assert style.color(name) in style.SPARE


def test_nothing_is_drawn_of_nothing(tmp_path):
    folder = hand_made.write_study(tmp_path / "speed_only", models=("llama-2-7b",))
    figures.draw(folder, folder / "figures")
    assert set(load(folder).figures) == {"trade_off", "floor", "batch", "memory", "attention"}


def test_memory_against_cards_is_of_a_gpu_alone(h200):
    cpu = changed(h200, summary=h200.table("summary").assign(device="cpu"))
    assert len(memory.memory_rows(h200)) and not len(memory.memory_rows(cpu))


def test_unfinished_measurements_leave_every_figure_drawable(tmp_path):
    """All of one model failed, and one precision of the other."""
    folder = hand_made.write_study(tmp_path / "study", models=("smollm2-135m", "llama-2-7b"))
    for name in ("processes", "probes", "quality"):
        table = columns.read_table(folder / f"{name}.csv")
        failed = (table["model"] == "llama-2-7b") | (table["precision"] == "fp16")
        table.loc[failed, ["status", "reason"]] = ["timeout", "too slow"]
        kept = [*columns.WORKLOAD, "corpus", "protocol", "process", "group", "again", "flags"]
        kept += [one.name for one in columns.SHARED]
        table.loc[failed, [column for column in table if column not in kept]] = np.nan
        table.to_csv(folder / f"{name}.csv", index=False)
    hand_made.derive(folder, hand_made.headline(("smollm2-135m", "llama-2-7b")))
    study = load(folder)
    for name in figures.FIGURES:
        assert len(figures.rows(name, study)), name
        drawn(name, study)


def test_the_floor_is_of_one_model_and_is_its_bytes_over_the_bandwidth(h200):
    rows = speed.floor_rows(h200)
    assert rows["model"].nunique() == 1 and not rows.duplicated(["precision", "runtime"]).any()
    own = h200.configurations().query("model == 'llama-2-7b'")
    rows = speed.floor_rows(changed(h200, summary=own, speed=h200.table("speed", "llama-2-7b")))
    row = rows.set_index(["precision", "runtime"]).loc[("bf16", "graph")]
    # 6.74e9 parameters of 2 bytes and 512 tokens of 0.5 MB, at 4.28e12 bytes a second
    assert row["floor_ms"] == pytest.approx((6.74e9 * 2 + 512 * 5e5) / 4.28e12 * 1e3, rel=1e-4)
    assert row["tpot_ms"] > row["floor_ms"]


def test_values_stand_at_the_points(h200):
    row = speed.floor_rows(h200).iloc[0]
    assert any(text.startswith(f"{columns.number(row['tpot_ms'])} ms") for text in words(drawn("floor", h200)))
    row = speed.batch_rows(h200).iloc[0]
    assert columns.number(row["e2e_speedup"]) in words(drawn("batch", h200))
    row = memory.memory_rows(h200).iloc[0]
    assert f"{columns.number(row['memory_gib'])} GiB" in words(drawn("memory", h200))


def test_the_trade_off_is_of_two_models_whose_steps_were_captured(h200):
    rows = answer.trade_off_rows(h200)
    assert list(rows["model"].unique()) == ["smollm2-135m", "llama-2-70b"]
    assert not rows.duplicated(["model", "precision", "runtime"]).any()
    library = h200.table("summary")
    library = library[(library["runtime"] == "generate") | (library["model"] == "llama-2-7b")]
    assert list(answer.trade_off_rows(changed(h200, summary=library))["model"].unique()) == ["llama-2-7b"]
    texts = words(drawn("trade_off", h200))
    assert any(text.startswith("int8-fused") and " → " in text and "PPL +0.52 %" in text for text in texts)


def test_the_batch_figure_is_relative_to_16_bit_in_the_fastest_runtime(h200):
    rows = speed.batch_rows(h200)
    assert set(rows["prompt_tokens"]) == {512} and set(rows["batch"]) == {1, 8, 32}
    assert set(rows["runtime"]) == {"graph"} and set(rows["precision"]) == {"int8-fused"}
    assert not rows.duplicated(["model", "precision", "batch"]).any()
    single = h200.table("speed").query("batch == 1")
    assert not len(speed.batch_rows(changed(h200, speed=single)))


def test_weights_that_were_published_in_4_bit_are_marked_as_quantized_twice(finished):
    study = load(finished / "results/default")
    assert not any("twice" in text for name in ("trade_off", "distance") for text in words(drawn(name, study)))
    study.provenance["models"]["smollm2-135m"]["fetched_note"] = "weights published as GGUF (210 Q4_1, 61 F32)"
    for name in ("trade_off", "distance"):
        assert [text for text in words(drawn(name, study)) if text.endswith("quantized twice")]
    study.provenance["models"]["smollm2-135m"]["fetched_note"] = "weights published as GGUF (210 Q8_0)"
    assert not any("twice" in text for text in words(drawn("distance", study)))


def test_the_reference_is_the_noise_floor_of_the_distance(h200):
    rows = quality.distance_rows(h200)
    assert list(rows.loc[rows["is_reference"], "precision"]) == ["bf16"]
    axis = drawn("distance", h200).axes[0]
    assert "bf16" not in [label.get_text() for label in axis.get_yticklabels()]
    assert not axis.patches, "a floor below the axis is not drawn"
    far = h200.table("quality").assign(kl_high_nats=0.01)
    assert drawn("distance", changed(h200, quality=far)).axes[0].patches


def test_sensitivity_shows_divergence_with_the_interval_of_the_table(h200):
    layers, linears = drawn("sensitivity", h200).axes
    own = h200.table("sensitivity")
    shown = layers.lines[0].get_ydata()
    assert sorted(shown) == sorted(own.loc[(own["linear"] == "all") & (own["layer"] != "all"), "kl_nats"])
    # the divergence of the hand-made kinds falls where their delta_nll rises
    assert [label.get_text() for label in linears.get_yticklabels()][0] == "q_proj"
    table = own.assign(status="ok")
    table.loc[3, "status"] = "error"
    assert len(figures.rows("sensitivity", changed(h200, sensitivity=table))) == len(table) - 1


def test_thresholds_are_drawn_with_the_tokens_that_they_are_over(h200):
    axis = drawn("thresholds", h200).axes[0]
    assert axis.get_ylabel() == "perplexity lost, %"
    ticks = [label.get_text() for label in axis.get_xticklabels()]
    assert ticks == ["0\n10,183", "2\n4,096", "4\n4,096", "6\n10,183", "inf\n4,096"]


def test_attention_names_each_kernel_at_its_last_value(h200):
    one = h200.table("attention").query("model == 'llama-2-7b'")
    figure = drawn("attention", changed(h200, attention=one))
    assert [axis.get_title("left") for axis in figure.axes] == [label for *_, label in diagnostics.PANELS]
    last = one.query("phase == 'prefill' and context == 16384 and attention == 'sdpa-flash'").iloc[0]
    assert f"sdpa-flash  {columns.number(last['time_ms'])}" in words(figure)
    on_cpu = one.assign(extra_mib=np.nan)
    assert len(drawn("attention", changed(h200, attention=on_cpu)).axes) == 2


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
    assert (np.diff(style.apart(places, 0.07)) >= 0.07 - 1e-9).all()


def test_cards_are_named_by_what_they_hold():
    assert memory.card(5.9) == "a card of 6 GB" and memory.card(24.0) == "a card of 24 GB"
    assert memory.card(139.0) == "a card of 141 GB" and memory.card(140.5) == "more than one card"
    assert pd.Series(memory.CARDS).is_monotonic_increasing
