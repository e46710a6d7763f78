"""Rounding one part of a model to int8: known errors, exact restoration, and no loss where nothing is rounded."""

import math

import numpy as np
import pytest
import torch
from llmstudy.errors import Unsupported
from llmstudy.measure.diagnostics import sensitivity
from llmstudy.measure.footprint import DecoderLinear, decoder_linears
from torch import nn


def linear_of(weight) -> DecoderLinear:
    module = nn.Linear(1, 1, bias=False)
    module.weight = nn.Parameter(torch.tensor(weight))
    return DecoderLinear(0, "q_proj", module)


def test_rounds_to_the_grid_of_each_output_channel_and_restores_bit_by_bit():
    # Scales are absmax / 127: 1 and 0.5 here, so the grid is known.
    linear = linear_of([[127.0, 63.6, -0.4], [63.5, -0.3, 0.2]])
    before = linear.module.weight.detach().clone()
    with sensitivity.rounded([linear]):
        assert torch.equal(linear.module.weight, torch.tensor([[127.0, 64.0, 0.0], [63.5, -0.5, 0.0]]))
    assert torch.equal(linear.module.weight, before)


def test_restores_after_a_failure():
    linear = linear_of([[1.0, 0.3]])
    before = linear.module.weight.detach().clone()
    with pytest.raises(KeyError), sensitivity.rounded([linear]):
        assert not torch.equal(linear.module.weight, before)
        raise KeyError
    assert torch.equal(linear.module.weight, before)


def test_a_quantized_model_is_unsupported_and_left_as_it_was():
    dense, quantized = linear_of([[1.0, 0.3]]), linear_of([[1.0]])
    quantized.module.weight = nn.Parameter(torch.ones(1, 1, dtype=torch.int8), requires_grad=False)
    with pytest.raises(Unsupported, match="quantized already"), sensitivity.rounded([dense, quantized]):
        pass
    assert torch.equal(dense.module.weight, torch.tensor([[1.0, 0.3]]))


def test_parts_are_all_then_layers_then_kinds_then_single_linears(tiny_llama):
    linears = list(decoder_linears(tiny_llama))
    parts = list(sensitivity.parts(linears, single=True))
    assert len(linears) == 21
    first = [(None, None), (0, None), (1, None), (2, None), (None, "q_proj")]
    assert [(part.layer, part.linear) for part in parts[:5]] == first
    assert len(parts) == 1 + 3 + 7 + 21
    assert len(list(sensitivity.parts(linears, single=False))) == 11
    some = (parts[0], parts[1], parts[4], parts[-1])
    assert [sum(part.contains(linear) for linear in linears) for part in some] == [21, 7, 3, 1]


def test_divergence_and_loss_of_known_distributions():
    p = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]]).log()
    q = torch.tensor([[0.25, 0.75], [0.9, 0.1], [0.2, 0.8]]).log()
    exact = [(np.zeros(2), p[:2]), (np.zeros(1), p[2:])]
    changed = [(np.array([1.0, 2.0]), q[:2]), (np.array([3.0]), q[2:])]
    nll, kl = sensitivity.against(exact, changed)
    assert nll.tolist() == [1.0, 2.0, 3.0]
    # 0.5 ln(0.5 / 0.25) + 0.5 ln(0.5 / 0.75)
    assert kl == pytest.approx([math.log(2 / math.sqrt(3)), 0, 0], abs=1e-6)


def test_a_layer_that_lies_on_the_grid_loses_nothing_and_the_other_does(measuring, monkeypatch):
    session = measuring("sensitivity", documents=6, tokens_per_document=30, single_linears=True)
    model, seconds = session.load_model()
    torch.manual_seed(1)
    for linear in decoder_linears(model):
        if linear.layer == 0:
            weight = linear.module.weight.data
            grid = torch.randint(-127, 128, weight.shape).float()
            grid[:, 0] = 127
            weight.copy_(grid / 512)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    monkeypatch.setattr(session, "load_model", lambda: (model, seconds))
    found = sensitivity.measure(session)
    delta = {(part["layer"], part["linear"]): part["delta_nll"] for part in found["parts"]}
    assert delta[0, None] == 0 and all(delta[0, name] == 0 for name in ("q_proj", "down_proj"))
    kl = {(part["layer"], part["linear"]): part["kl"] for part in found["parts"]}
    assert kl[0, None] == 0 < kl[1, "v_proj"]
    assert delta[1, None] != 0
    assert delta[None, None] == delta[1, None]  # the only layer that changes
    assert found["tokens"] == 6 * 30 - 1
    assert all(part["low"] <= part["delta_nll"] <= part["high"] for part in found["parts"] if part["se"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
