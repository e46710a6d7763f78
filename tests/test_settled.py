"""Test whether one more panel is needed, from the records of those before it."""

import pytest
from llmstudy.tables import settled
from table_kit import AT, OOM, panel, write_record

UNTIL = {"margin_percent": 10.0, "minutes": 2.0, "minimum": 1, "dense": ["fp32", "bf16"]}
SETTINGS = {"workloads": [AT, AT | {"batch": 8}], "until": UNTIL}


def panels(folder, *ratios, **changes):
    """Write a panel for each true ratio of fp32 to nf4, at the first workload; return their paths."""
    return [
        panel(folder, {"fp32": [20.0], "again": [20.0], "nf4": [20.0 / ratio]}, number=number, **changes)
        for number, ratio in enumerate(ratios)
    ]


def reason(paths, **until):
    return settled.reason(paths, SETTINGS | {"until": UNTIL | until})


FASTER, SLOWER, SAME, OPEN = (2.0, 2.0, 2.0), (0.5, 0.5, 0.5), (1.01, 1.01, 1.01), (0.8, 1.4, 1.0)


@pytest.mark.parametrize(("ratios", "enough"), [(FASTER, 1), (SLOWER, 1), (SAME, 1), (OPEN, 0), (FASTER[:1], 0)])
def test_one_more_is_needed_while_a_verdict_is_open(tmp_path, ratios, enough):
    assert reason(panels(tmp_path, *ratios)) == (settled.ENOUGH.format(3) if enough else None)


def test_only_every_second_panel_from_the_minimum_on_is_looked_at(tmp_path):
    looks = [reason(panels(tmp_path, *[2.0] * number), minimum=3) is not None for number in (3, 4, 5)]
    assert looks == [True, False, True]


def test_the_reference_against_itself_is_no_verdict_to_settle(tmp_path):
    noisy = [{"fp32": [20.0], "again": [again], "nf4": [1.0]} for again in (20.0, 26.0, 15.0)]
    assert reason([panel(tmp_path, one, number=number) for number, one in enumerate(noisy)]) == settled.ENOUGH.format(3)


def test_the_margin_of_the_study_decides_what_is_the_same(tmp_path):
    paths = panels(tmp_path, 0.96, 1.04, 1.0)
    assert reason(paths, margin_percent=30.0) == settled.ENOUGH.format(3)
    assert reason(paths, margin_percent=1.0) is None


def test_the_fastest_dense_configuration_is_the_base_as_in_speed_csv(tmp_path):
    """nf4 is certainly slower than bf16, and nothing can be said of it beside the slower reference."""
    noisy = [{"fp32": [20.0], "bf16": [10.0], "nf4": [20.0 * drift]} for drift in (0.85, 1.2, 1.0)]
    paths = [panel(tmp_path, one, number=number) for number, one in enumerate(noisy)]
    assert reason(paths) == settled.ENOUGH.format(3)
    assert reason(paths, dense=["fp32"]) is None


@pytest.mark.parametrize(("wall_s", "used_up"), [(35.0, False), (45.0, True)])
def test_the_minutes_must_hold_one_more_panel_and_waiting_is_not_counted(tmp_path, wall_s, used_up):
    paths = panels(tmp_path, 0.8, 1.4, provenance={"wall_s": wall_s + 500, "waited_s": 500.0})  # of 120 s
    for minimum in (1, 2):  # whether it is looked at or not
        assert reason(paths, minimum=minimum) == (settled.NO_TIME.format("2") if used_up else None)


def test_where_the_first_workload_was_not_measured_one_more_would_not_help(tmp_path):
    nothing = "no configuration was measured by the panels before"
    lost = [panel(tmp_path, {"fp32": OOM, "nf4": OOM}), panel(tmp_path, {"fp32": OOM}, number=1, **OOM)]
    assert reason(lost) == nothing
    measured = panels(tmp_path / "measured", 0.8, 1.4)
    assert reason([*lost, *measured]) is None
    assert settled.reason(measured, SETTINGS | {"workloads": SETTINGS["workloads"][::-1]}) == nothing


def test_after_a_panel_that_was_skipped_none_is_needed(tmp_path):
    skipped = write_record(tmp_path, "panel", {}, {}, status="skipped", reason="settled before", repeat=2)
    assert reason([*panels(tmp_path, 0.8, 1.4), skipped]) == "settled before"
