"""Tasks of lm-eval: log-likelihoods against a forward pass of our own, every kind of answer, what can be missing."""

import sys
from functools import partial

import datasets
import huggingface_hub
import lm_eval.tasks
import local_task
import numpy as np
import pytest
import torch
import yaml
from llmstudy.errors import StudyError
from llmstudy.fetch import tasks as fetching
from llmstudy.measure.diagnostics import tasks
from llmstudy.runner import child
from llmstudy.runner import record as records

# Lets Python find no lm-eval, as where it is not installed.
HIDE = """
import sys


class Hide:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "lm_eval":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Hide)
"""
RIGHT = np.array([question["right"] for question in local_task.QUESTIONS])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Task files and a cache in this test's folder, without lm-eval's own tasks, which take seconds to read."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for module in (datasets.config, huggingface_hub.constants):  # as in a measuring process
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", partial(lm_eval.tasks.TaskManager, include_defaults=False))
    return local_task.save(tmp_path / "tasks")


@pytest.fixture
def session_of(measuring, folder):
    return lambda *names, **changes: measuring("tasks", tasks=list(names), include_path=str(folder), **changes)


def measured(session) -> tuple[dict, dict]:
    """Entry by task, and the arrays."""
    entries = {entry["task"]: entry for entry in tasks.measure(session)["tasks"]}
    with np.load(session.artifacts / "arrays.npz") as stored:
        return entries, dict(stored)


def log_likelihoods(session) -> np.ndarray:
    """float64 [questions, answers] of the multiple-choice task: one forward pass each, log-softmax in float64."""
    model, _ = session.load_model()
    tokenizer = session.weights.tokenizer
    found = []
    for question in local_task.QUESTIONS:
        for answer in question["answers"]:
            start = len(tokenizer(question["question"])["input_ids"])
            ids = torch.tensor([tokenizer(f"{question['question']} {answer}")["input_ids"]])
            with torch.no_grad():
                nats = model(ids[:, :-1]).logits[0].double().log_softmax(-1)
            found.append(nats[range(len(nats)), ids[0, 1:]][start - 1 :].sum())
    return torch.stack(found).view(len(local_task.QUESTIONS), -1).numpy()


def test_log_likelihoods_are_those_of_a_forward_pass(session_of):
    session = session_of("tiny_choice")
    entries, arrays = measured(session)
    expected = log_likelihoods(session)
    assert arrays["tiny_choice/loglikelihood"] == pytest.approx(expected.ravel(), abs=1e-3)
    assert arrays["tiny_choice/choices"].tolist() == [3] * len(RIGHT)
    assert arrays["tiny_choice/answer"].astype(int).tolist() == expected.argmax(1).tolist()
    correct = expected.argmax(1) == RIGHT
    assert arrays["tiny_choice/correct"].tolist() == correct.tolist()
    entry = entries["tiny_choice"]
    assert (entry["status"], entry["metric"], entry["documents"]) == ("ok", "acc", len(RIGHT))
    assert entry["scores"]["tiny_choice"]["acc,none"] == pytest.approx(correct.mean())
    assert len(set(arrays["tiny_choice/document"])) == len(RIGHT)


def test_log_softmax_of_a_16_bit_model_is_fp32(session_of):
    """Batches of one, so that the logits are those of our own pass: what is left is the rounding of the softmax."""
    session = session_of("tiny_choice", precision="bf16", batch_size=1)
    _, arrays = measured(session)
    assert arrays["tiny_choice/loglikelihood"] == pytest.approx(log_likelihoods(session).ravel(), abs=2e-3)


def test_every_kind_of_answer(session_of):
    entries, arrays = measured(session_of("tiny_cloze", "tiny_writing", "tiny_group", limit=5))
    assert [(name, entry["status"], entry["metric"], entry["documents"]) for name, entry in entries.items()] == [
        ("tiny_cloze", "ok", "acc", 5),
        ("tiny_writing", "ok", "exact_match", 5),
        ("tiny_group", "ok", "acc", 10),
    ]
    assert set(arrays["tiny_cloze/answer"]) <= {"True", "False"} and arrays["tiny_cloze/choices"].tolist() == [1] * 5
    assert (arrays["tiny_cloze/correct"] == (arrays["tiny_cloze/answer"] == "True")).all()
    assert arrays["tiny_writing/loglikelihood"].size == 0 and (arrays["tiny_writing/answer"] != "").any()
    # a group is its tasks one after the other, and a task in it is the same as alone
    assert (arrays["tiny_group/document"][5:] == arrays["tiny_cloze/document"]).all()
    assert arrays["tiny_group/choices"].tolist() == [3] * 5 + [1] * 5


def test_what_cannot_be_measured_costs_only_itself(session_of):
    names = ["tiny_perplexity", "tiny_absent", "arc_easyy", "tiny_choice"]
    session = session_of(*names)
    results = tasks.measure(session)
    reasons = {entry["task"]: entry["reason"] for entry in results["tasks"]}
    assert [entry["status"] for entry in results["tasks"]] == ["error", "error", "error", "ok"]
    assert "of its metrics (bits_per_byte) none says which" in reasons["tiny_perplexity"]
    assert "task tiny_absent: its data set is not in the cache" in reasons["tiny_absent"]
    assert "--forcerun fetch_tasks" in reasons["tiny_absent"]
    assert "'arc_easyy' is not known; allowed: tasks of lm-eval==0.4.13" in reasons["arc_easyy"]
    assert child.status_of(results, "tasks")["status"] == "ok"
    assert child.status_of({"tasks": results["tasks"][:3]}, "tasks")["reason"] == reasons["tiny_perplexity"]


def test_a_precision_that_overflows_has_no_accuracy(session_of, monkeypatch):
    session = session_of("tiny_choice")
    model, seconds = session.load_model()
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    monkeypatch.setattr(session, "load_model", lambda: (model, seconds))
    (entry,) = tasks.measure(session)["tasks"]
    assert (entry["status"], entry["reason"]) == ("overflow", "not finite at lm_head, its weights in float32")


def test_without_lm_eval_the_record_says_unsupported(session_of, monkeypatch, tmp_path):
    """In the real child process."""
    job = session_of("tiny_choice").job
    (tmp_path / "hide").mkdir()
    (tmp_path / "hide" / "sitecustomize.py").write_text(HIDE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hide"))
    records.measure(job, tmp_path / "record.json", tmp_path / "log", {"arrays.npz": tmp_path / "record.npz"})
    record = records.read(tmp_path / "record.json")
    assert (record["status"], record["reason"]) == ("unsupported", fetching.MISSING)
    assert "pip install lm-eval==0.4.13" in record["reason"]


def test_fetching_says_what_the_data_are(folder, tmp_path):
    target = tmp_path / "resources" / "tiny.json"
    fetching.fetch_tasks(["tiny_choice", "tiny_group"], str(folder), target)
    one = {"dataset": "json", "subset": None, "documents": len(RIGHT)}
    assert yaml.safe_load(target.read_text()) == {
        "tiny_choice": {"tiny_choice": one},
        "tiny_group": {"tiny_choice": one, "tiny_cloze": one},
    }


def test_what_cannot_be_fetched_is_one_line(folder, tmp_path, monkeypatch):
    with pytest.raises(StudyError, match="task tiny_absent: no network, or the hub does not answer"):
        fetching.fetch_tasks(["tiny_absent"], str(folder), tmp_path / "tiny.json")
    with pytest.raises(StudyError, match="'arc_easyy' is not known"):
        fetching.fetch_tasks(["arc_easyy"], str(folder), tmp_path / "tiny.json")
    for name in [one for one in sys.modules if one.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", sys.meta_path.copy())
    exec(HIDE)
    with pytest.raises(StudyError, match="tasks need lm-eval, which is not installed here: pip install lm-eval=="):
        fetching.fetch_tasks(["tiny_choice"], str(folder), tmp_path / "tiny.json")
    assert not (tmp_path / "tiny.json").exists()
