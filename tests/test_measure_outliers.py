"""Outlier statistics against hand-made activations and a direct computation."""

import pytest
import torch
from llmstudy.measure.diagnostics import outliers
from llmstudy.measure.footprint import DecoderLinear
from torch import nn


def count_of(*inputs: torch.Tensor, thresholds):
    linear = DecoderLinear(3, "q_proj", nn.Linear(inputs[0].shape[-1], 2))
    count = outliers.OutlierCount(linear, thresholds)
    for x in inputs:
        linear.module(x)
    return count.entry()


def test_counts_known_outliers_over_several_calls():
    first, second = torch.zeros(1, 4, 5), torch.zeros(1, 2, 5)
    first[0, 1, 2], first[0, 3, 2], first[0, 3, 4] = 7.0, -6.5, 3.0
    second[0, 0, 0] = -8.0
    entry = count_of(first, second, thresholds=[2.0, 6.0, 7.5])
    assert (entry["layer"], entry["linear"], entry["columns"], entry["max_abs"]) == (3, "q_proj", 5, 8.0)
    assert entry["thresholds"] == [
        {"threshold": 2.0, "column_share": pytest.approx(3 / 5), "row_share": 3 / 6, "entry_share": 4 / 30},
        {"threshold": 6.0, "column_share": pytest.approx(2 / 5), "row_share": 3 / 6, "entry_share": 3 / 30},
        {"threshold": 7.5, "column_share": pytest.approx(1 / 5), "row_share": 1 / 6, "entry_share": 1 / 30},
    ]


def test_a_magnitude_equal_to_the_threshold_is_an_outlier_as_in_bitsandbytes():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    x = torch.tensor([[6.0, 5.99, -6.0]])
    columns = bitsandbytes.functional.int8_vectorwise_quant(x.half(), 6.0)[2]
    assert count_of(x, thresholds=[6.0])["thresholds"][0]["column_share"] == pytest.approx(len(columns) / 3)
    assert columns.tolist() == [0, 2]


def test_measures_every_linear_of_a_model_as_a_direct_computation_does(measuring):
    session = measuring("outliers", thresholds=[0.5, 2.0], documents=2, tokens_per_document=30)
    found = outliers.measure(session)
    assert found["tokens"] == 59
    assert [(linear["layer"], linear["linear"]) for linear in found["linears"]] == [
        (layer, f"{name}_proj") for layer in (0, 1) for name in ("q", "k", "v", "o", "gate", "up", "down")
    ]
    model, _ = session.load_model()
    stream = outliers.token_stream(session, "tiny-text", session.settings_as(outliers.Settings))
    with torch.no_grad():
        ids = torch.from_numpy(stream.ids[:-1])
        x = model.model.layers[0].input_layernorm(model.model.embed_tokens(ids)).abs()
    for query in found["linears"][:3]:
        for at, threshold in zip(query["thresholds"], (0.5, 2.0)):
            assert at["column_share"] == pytest.approx((x.amax(0) >= threshold).float().mean().item())
            assert at["row_share"] == pytest.approx((x.amax(1) >= threshold).float().mean().item())
            assert 0 < at["entry_share"] == pytest.approx((x >= threshold).float().mean().item())
