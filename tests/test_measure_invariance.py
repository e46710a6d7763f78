"""Batch invariance: nothing changes in fp32, and a model that looks at its neighbours is caught."""

from types import SimpleNamespace

import pytest
import torch
from llmstudy.measure.diagnostics import invariance


def test_compositions_keep_the_prompt_first_and_share_no_neighbour_between_sets():
    assert invariance.compositions(3, 2) == {"copies": [0, 0, 0], "others 1": [0, 1, 2], "others 2": [0, 3, 4]}


def test_differences_of_known_logits():
    alone = torch.tensor([[0.0, 1.0, 2.0], [5.0, 1.0, 0.0]])
    beside = torch.tensor([[0.0, 3.0, 2.0], [5.0, 1.0, 0.5]])
    assert invariance.compare(alone, beside) == {
        "max_abs_delta_logit": 2.0,
        "mean_abs_delta_logit": pytest.approx(2.5 / 6),
        "top1_changes": 1,
    }


def test_fp32_does_not_depend_on_neighbours(measuring):
    session = measuring("invariance")
    found = invariance.measure(session)
    assert found["positions"] == 20
    assert [(entry["batch"], entry["neighbours"]) for entry in found["batches"]] == [
        (batch, name) for batch in (2, 3) for name in ("copies", "others 1", "others 2")
    ]
    assert all(entry["max_abs_delta_logit"] < 1e-4 and entry["top1_changes"] == 0 for entry in found["batches"])


def test_a_model_that_looks_at_its_neighbours_is_caught(measuring, monkeypatch):
    session = measuring("invariance", batches=[3])

    def model(ids, use_cache):
        logits = torch.nn.functional.one_hot(ids, 320).float()
        return SimpleNamespace(logits=logits + logits.amax(dim=(0, 1)))

    monkeypatch.setattr(session, "load_model", lambda: (model, 0.0))
    changes = {entry["neighbours"]: entry["max_abs_delta_logit"] for entry in invariance.measure(session)["batches"]}
    assert changes == {"copies": 0.0, "others 1": 1.0, "others 2": 1.0}


def test_a_batch_that_does_not_fit_costs_only_itself(measuring, monkeypatch):
    session = measuring("invariance", neighbour_sets=1)
    real = invariance.logits_of_first

    def limited(session, model, ids):
        if len(ids) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(session, model, ids)

    monkeypatch.setattr(invariance, "logits_of_first", limited)
    statuses = [entry["status"] for entry in invariance.measure(session)["batches"]]
    assert statuses == ["ok", "ok", "oom", "oom"]
