"""Two studies compared: what counts as a change, and what fails."""

import math

import numpy as np
import pandas as pd
import pytest
from llmstudy.errors import StudyError
from llmstudy.tables.compare import compare

LIMITS = {"tpot_percent": 5.0, "memory_percent": 2.0, "ppl_percent": 0.5}
PRECISIONS = ("bf16", "int8", "nf4")
FILES = ("processes.csv", "probes.csv", "quality.csv")


def write_study(folder, *, tpot=1.0, memory=1.0, nll=0.0, processes=4, arrays=True, seed=0, spread=0.02, status=None):
    """Write a study of three precisions; factors apply to int8 alone. Returns its folder."""
    rng = np.random.default_rng(seed)
    document = np.repeat(np.arange(12), 50)
    level = np.random.default_rng(99).normal(3, 0.5, 12)[document]
    times, memories, quality = [], [], []
    for precision in PRECISIONS:
        changed = precision == "int8"
        shared = {"study": folder.name, "model": "m", "precision": precision, "attention": "sdpa"}
        shared |= {"runtime": "generate", "device": "cuda", "weights": "real"}
        shared |= {"status": status if changed and status else "ok", "reason": "too large" if status else ""}
        workload = {"batch": 1, "prompt_tokens": 128, "new_tokens": 32}
        for process in range(processes):
            tpot_ms = 20 * (tpot if changed else 1) * np.exp(spread * rng.standard_normal())
            row = shared | workload | {"process": process, "group": 0, "ttft_ms": 50 + rng.random()}
            again = [row | {"again": "yes", "tpot_ms": 99.0}], [row | {"again": "no", "group": 1, "tpot_ms": 99.0}]
            before, behind = again if precision == "bf16" else ([], [])  # the reference's second calls and group
            times += [*before, row | {"again": "no", "tpot_ms": tpot_ms}, *behind]
        memories.append(shared | workload | {"memory_gib": 7 * (memory if changed else 1)})
        losses = level + 0.001 * rng.standard_normal(600) + (nll if changed else 0)
        kl = np.full(600, 0.01) + np.abs(nll if changed else 0) + 1e-5 * rng.standard_normal(600)
        top1 = rng.random(600) < 0.95
        ppl = math.exp(losses.mean())
        row = {"corpus": "wiki", "protocol": "w1024", "tokens": 600, "words": 450, "utf8_bytes": 2_700_000}
        row |= {"ppl": ppl, "ppl_low": ppl * 0.8, "ppl_high": ppl * 1.2, "kl_nats": kl.mean()}
        quality.append(shared | row | {"top1_agreement": top1.mean(), "top1_low": 0.93, "top1_high": 0.97})
        stored = {"nll": losses, "kl": kl[:300], "top1": top1[:300].astype(np.float32), "document": document}
        if arrays:
            path = folder / "records" / "quality" / "m" / f"{precision}.sdpa.generate.r0.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, **{f"wiki/w1024/{key}": values for key, values in stored.items()})
    folder.mkdir(exist_ok=True, parents=True)
    for file, rows in zip(FILES, (times, memories, quality)):
        pd.DataFrame(rows).to_csv(folder / file, index=False)
    return folder


def compared(tmp_path, limits=LIMITS, before=None, **changes):
    old = write_study(tmp_path / "before", seed=1, **(before or {}))
    return compare(old, write_study(tmp_path / "after", seed=2, **changes), limits)


@pytest.fixture
def twins(tmp_path):
    """Two studies that measured the same."""
    return write_study(tmp_path / "before"), write_study(tmp_path / "after")


def of(table, quantity, precision="int8"):
    return table[(table["quantity"] == quantity) & (table["precision"] == precision)].iloc[0]


def changed(folder, file, **columns):
    """Rewrite columns of int8 in a table of a study."""
    table = pd.read_csv(folder / file).astype({"reason": object})
    table.loc[table["precision"] == "int8", list(columns)] = list(columns.values())
    table.to_csv(folder / file, index=False)
    return folder


def test_two_runs_of_the_same_do_not_fail(tmp_path):
    table, failures = compared(tmp_path)
    assert failures == [] and not table["exceeded"].any() and not table["significant"].any()
    assert set(table["quantity"]) == {"tpot_ms", "ttft_ms", "memory_gib", "ppl", "kl_nats", "top1_agreement"}
    assert of(table, "ppl")["method"] == "paired, 12 documents"
    assert 19 < of(table, "tpot_ms", "bf16")["baseline"] < 21  # neither the second calls nor another group


def test_a_slowdown_fails_and_a_speedup_does_not(tmp_path):
    table, failures = compared(tmp_path, tpot=1.2)
    row = of(table, "tpot_ms")
    assert row["significant"] and row["exceeded"]
    assert 5 < row["change_low"] < 20.5 and 19.5 < row["change_high"] < 35
    assert len(failures) == 1 and "% where 5 % is allowed" in failures[0]
    assert failures[0].startswith("m int8 sdpa generate (batch 1, prompt_tokens 128, new_tokens 32)")
    table, failures = compared(tmp_path, tpot=0.8)
    assert of(table, "tpot_ms")["significant"] and failures == []


def test_a_change_below_the_limit_or_without_one_does_not_fail(tmp_path):
    table, failures = compared(tmp_path, tpot=1.04, spread=0.001, before={"spread": 0.001})
    assert of(table, "tpot_ms")["significant"] and failures == []
    assert compared(tmp_path, limits={}, tpot=2.0, memory=2.0, nll=0.5)[1] == []


def test_a_change_that_noise_explains_does_not_fail_but_is_noted(tmp_path):
    table, failures = compared(tmp_path, before={"processes": 1}, tpot=1.5, processes=1)
    row = of(table, "tpot_ms")
    assert failures == [] and math.isnan(row["change_low"]) and not row["significant"]
    assert row["note"] == "beyond the limit, but not significant"


def test_memory_is_held_to_its_limit_without_an_interval(tmp_path):
    table, failures = compared(tmp_path, memory=1.03)
    assert of(table, "memory_gib")["change"] == pytest.approx(3.0) and len(failures) == 1
    assert compared(tmp_path, memory=1.01)[1] == []


def test_pairing_sees_a_loss_of_quality_that_the_tables_alone_cannot(tmp_path):
    table, failures = compared(tmp_path, nll=math.log(1.01))
    row = of(table, "ppl")
    assert row["change"] == pytest.approx(1.0, abs=0.05) and row["change_high"] - row["change_low"] < 0.1
    assert len(failures) == 1 and "ppl" in failures[0]
    assert of(table, "kl_nats")["significant"] and of(table, "kl_nats")["unit"] == "nats"
    unpaired, failures = compared(tmp_path / "again", nll=math.log(1.01), arrays=False, before={"arrays": False})
    row = of(unpaired, "ppl")
    assert row["method"] == "from the tables" and not row["significant"] and failures == []
    assert row["change_low"] < -20 and math.isnan(of(unpaired, "kl_nats")["change_low"])


def test_a_configuration_that_fails_now_is_a_failure(tmp_path):
    table, failures = compared(tmp_path, limits={}, status="oom")
    assert len(failures) == 3 and all("ok before, oom now: too large" in failure for failure in failures)
    assert set(table[table["exceeded"]]["precision"]) == {"int8"}


def test_a_configuration_that_is_gone_is_a_failure(twins):
    for file in FILES:
        table = pd.read_csv(twins[1] / file)
        table[table["precision"] != "nf4"].to_csv(twins[1] / file, index=False)
    failures = compare(*twins, LIMITS)[1]
    assert len(failures) == 3 and all("m nf4" in failure and "missing now" in failure for failure in failures)


def test_a_figure_or_a_process_that_is_lost_is_a_failure(twins):
    after = changed(twins[1], "probes.csv", memory_gib=math.nan)
    changed(changed(after, "processes.csv", ttft_ms=math.nan), "quality.csv", ppl=math.nan)
    times = pd.read_csv(after / "processes.csv").astype({"reason": object})
    times.loc[(times["precision"] == "int8") & (times["process"] > 0), ["status", "reason"]] = ["oom", "full"]
    times.to_csv(after / "processes.csv", index=False)
    lost, ttft, memory, ppl = (failure.split("): ")[1] for failure in compare(*twins, LIMITS)[1])
    assert lost == "3 of 4 processes oom now: full" and memory == "memory_gib was 7, nan now"
    assert ttft.startswith("ttft_ms was 50.") and ttft.endswith(", nan now") and ppl.endswith(", nan now")


def test_another_text_is_not_compared(twins):
    changed(twins[1], "quality.csv", words=451)
    table, failures = compare(*twins, LIMITS)
    assert len(failures) == 1 and "not the text of the baseline" in failures[0]
    assert set(table.loc[table["quantity"] == "ppl", "precision"]) == {"bf16", "nf4"}


def test_a_perplexity_without_an_interval_is_held_to_its_limit(tmp_path):
    before, after = (write_study(tmp_path / name, arrays=False) for name in ("before", "after"))
    ppl = pd.read_csv(after / "quality.csv").set_index("precision")["ppl"]["int8"]
    for folder in (before, after):
        changed(folder, "quality.csv", ppl_low=math.nan, ppl_high=math.nan)
    assert compare(before, after, LIMITS)[1] == []
    failures = compare(before, changed(after, "quality.csv", ppl=2.7 * ppl), LIMITS)[1]
    assert len(failures) == 1 and "ppl" in failures[0] and "+170 % where 0.5 % is allowed" in failures[0]


def test_missing_and_empty_studies_are_user_errors(twins, tmp_path):
    before, empty = twins
    with pytest.raises(StudyError, match=r"gone/processes.csv: no such table; run the study gone first"):
        compare(before, tmp_path / "gone", LIMITS)
    for file in FILES:
        pd.read_csv(empty / file).assign(status="error").to_csv(empty / file, index=False)
    with pytest.raises(StudyError, match="nothing was measured"):
        compare(empty, before, LIMITS)
    for file, column in (("probes.csv", "batch"), ("processes.csv", "again")):  # the latter of an older study
        pd.read_csv(before / file).drop(columns=column).to_csv(before / file, index=False)
        with pytest.raises(StudyError, match=f"{file}: column {column} is missing"):
            compare(before, before, LIMITS)
