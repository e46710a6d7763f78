"""tasks.csv from hand-made records: accuracy, known flips, and what cannot be compared."""

import json
import math

import extra_jobs
import numpy as np
import pandas as pd
import pytest
from llmstudy.stats.multiplicity import holm
from llmstudy.tables import tasks
from llmstudy.tables.columns import read_table

SETTINGS = {"tasks": ["quiz"]}
RIGHT = [1] * 60 + [0] * 40  # the reference's; its answers are all "0"


def save(folder, precision, correct=None, answer=None, document=None, task="quiz", model="tiny-llama", **failure):
    """A record and its arrays; ``correct`` and ``answer`` are the reference's unless said otherwise."""
    path = folder / f"{model}.{precision}.json"
    entry = {"task": task, "status": "ok", "reason": "", "metric": "acc", "documents": 100} | failure
    record = extra_jobs.record("tasks", {"tasks": [entry]}, SETTINGS, precision=precision, model=model)
    path.write_text(json.dumps(record))
    if not failure:
        correct = np.array(RIGHT if correct is None else correct, dtype=np.int8)
        arrays = {
            "correct": correct,
            "answer": np.array(answer or ["0"] * len(correct)),
            "document": np.arange(len(correct), dtype=np.uint64) if document is None else np.array(document),
        }
        np.savez(path.with_suffix(".npz"), **{f"quiz/{key}": values for key, values in arrays.items()})
    return str(path)


def table(folder, *paths) -> pd.DataFrame:
    tasks.write(list(paths), {"tiny-llama": "fp32", "other": "fp32"}, folder / "tasks.csv")
    return read_table(folder / "tasks.csv")


def flipped(lost: int, gained: int) -> dict:
    """What a precision left that loses the first ``lost`` right answers and gains the first ``gained`` wrong ones; one
    more wrong answer is another wrong one."""
    correct, answer = RIGHT.copy(), ["0"] * 100
    for place in [*range(lost), *range(60, 60 + gained)]:
        correct[place], answer[place] = 1 - correct[place], "1"
    answer[99] = "2"
    return {"correct": correct, "answer": answer}


def test_flips_against_the_reference(tmp_path):
    found = table(tmp_path, save(tmp_path, "fp32"), save(tmp_path, "nf4", **flipped(9, 1)))
    reference, nf4 = found.to_dict("records")
    assert (reference["accuracy"], nf4["accuracy"], nf4["documents"]) == (0.6, 0.52, 100)
    # the closed form of Wilson's interval for 60 of 100
    z = 1.959964
    half = z * math.sqrt(0.6 * 0.4 / 100 + z**2 / 40_000) / (1 + z**2 / 100)
    middle = (0.6 + z**2 / 200) / (1 + z**2 / 100)
    assert reference["accuracy_low"] == pytest.approx(middle - half, rel=1e-5)
    assert reference["accuracy_high"] == pytest.approx(middle + half, rel=1e-5)
    assert nf4["accuracy_change"] == pytest.approx(-0.08)
    assert nf4["accuracy_change_low"] < -0.08 < nf4["accuracy_change_high"] < 0
    assert (nf4["answers_changed"], nf4["correct_to_wrong"], nf4["wrong_to_correct"]) == (11, 9, 1)
    assert nf4["mcnemar_p"] == pytest.approx(2 * (1 + 10) / 2**10, rel=1e-5)
    assert nf4["distinguishable"] == "yes"
    for column in ("accuracy_change", "answers_changed", "mcnemar_p", "mcnemar_p_holm", "distinguishable"):
        assert pd.isna(reference[column])


def test_equal_accuracy_can_hide_many_flips(tmp_path):
    _, row = table(tmp_path, save(tmp_path, "fp32"), save(tmp_path, "nf4", **flipped(20, 20))).to_dict("records")
    assert (row["accuracy_change"], row["answers_changed"], row["mcnemar_p"]) == (0, 41, 1)
    assert row["distinguishable"] == "no"


def test_p_values_are_adjusted_within_a_model(tmp_path):
    flips = {"bf16": (1, 1), "nf4": (9, 1), "fp4": (8, 1)}
    paths = [save(tmp_path, "fp32"), *(save(tmp_path, name, **flipped(*two)) for name, two in flips.items())]
    paths += [save(tmp_path, "fp32", model="other"), save(tmp_path, "nf4", model="other", **flipped(9, 1))]
    found = table(tmp_path, *paths).dropna(subset="mcnemar_p").set_index(["model", "precision"])
    p = [1, 22 / 1024, 20 / 512]
    assert found.loc["tiny-llama", "mcnemar_p"].tolist() == pytest.approx(p, rel=1e-5)
    assert found.loc["tiny-llama", "mcnemar_p_holm"].tolist() == pytest.approx(holm(np.array(p)), rel=1e-5)
    assert found.loc["tiny-llama", "distinguishable"].tolist() == ["no"] * 3
    assert found.loc[("other", "nf4"), "distinguishable"] == "yes"


def test_other_documents_are_an_error_and_not_a_comparison(tmp_path):
    paths = [save(tmp_path, "fp32"), save(tmp_path, "nf4", document=np.arange(1, 101, dtype=np.uint64))]
    row = table(tmp_path, *paths).iloc[1]
    assert (row["status"], row["reason"]) == ("error", "not the documents of the reference: measure both again")
    assert row["accuracy"] == 0.6 and pd.isna(row["accuracy_change"]) and pd.isna(row["mcnemar_p"])


def test_what_failed_is_a_row_and_costs_the_others_their_comparison_alone(tmp_path):
    failed = save(tmp_path, "fp32", status="oom", reason="CUDA out of memory")
    never = tmp_path / "never.json"
    never.write_text(json.dumps(extra_jobs.record("tasks", {}, SETTINGS, precision="bf16", status="timeout")))
    never.with_suffix(".npz").touch()  # what a job that left nothing leaves
    found = table(tmp_path, failed, str(never), save(tmp_path, "nf4", **flipped(9, 1)))
    assert found["status"].tolist() == ["oom", "timeout", "ok"]
    assert found["task"].tolist() == ["quiz"] * 3
    assert found.loc[2, "accuracy"] == 0.52 and pd.isna(found.loc[2, "mcnemar_p"])
