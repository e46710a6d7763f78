"""GPTQ against the definition of each of its steps, solved anew, and on a model."""

import pytest
import torch
from conftest import llama_with
from llmstudy.errors import Unsupported
from llmstudy.kernels.linear import Int4Linear
from llmstudy.kernels.quantize import INT4, dequantize, group_scale, quantize, unpack
from llmstudy.models.gptq import DAMPING, gptq, quantize_decoder


def inputs(rows, columns):
    """Correlated inputs: with independent ones nothing can be made up."""
    torch.manual_seed(0)
    return torch.randn(rows, columns // 4) @ torch.randn(columns // 4, columns) + 0.5 * torch.randn(rows, columns)


def step_by_step(weight, hessian, group):
    """Round column after column; the others become the minimum of (w - ŵ) H (w - ŵ)ᵀ given what is rounded."""
    hessian = hessian.double() + DAMPING * hessian.double().diagonal().mean() * torch.eye(len(hessian))
    original, left = weight.double(), weight.double().clone()
    rounded = torch.empty_like(original)
    for column in range(weight.shape[1]):
        if column % group == 0:
            scale = group_scale(left[:, column : column + group].float()).double()
        rounded[:, column] = (left[:, column] / scale).round().clamp(-8, 7) * scale
        done, rest = slice(0, column + 1), slice(column + 1, None)
        error = original[:, done] - rounded[:, done]
        made_up = torch.linalg.solve(hessian[rest, rest], hessian[rest, done] @ error.T).T
        left[:, rest] = original[:, rest] + made_up
    return rounded


@pytest.mark.parametrize("columns", [32, 96, 256])
def test_every_column_is_rounded_as_the_definition_says(columns):
    x = inputs(400, columns)
    weight = torch.randn(7, columns)
    group = 128 if columns == 256 else 32
    expected = step_by_step(weight, x.T @ x, group)
    found = dequantize(gptq(weight, x.T @ x), torch.float32).double()
    # Rounding of float32 may move a weight that lies between two levels, and with it those after it.
    assert ((found - expected).abs() > 1e-6).any(0).sum() <= columns // 16


def test_outputs_change_less_than_with_the_nearest_levels():
    x = inputs(4000, 256)
    weight = torch.randn(64, 256)
    exact = x @ weight.T
    errors = [
        (x @ dequantize(quantized, torch.float32).T - exact).norm() / exact.norm()
        for quantized in (gptq(weight, x.T @ x), quantize(weight, dtype=INT4))
    ]
    assert errors[0] < 0.5 * errors[1]


def test_uncorrelated_inputs_give_the_nearest_levels():
    weight = torch.randn(5, 128)
    assert torch.equal(unpack(gptq(weight, torch.eye(128)).q), unpack(quantize(weight, dtype=INT4).q))


def test_inputs_that_are_always_zero_do_no_harm():
    x = inputs(300, 64)
    x[:, 5] = 0
    assert dequantize(gptq(torch.randn(4, 64), x.T @ x), torch.float32).isfinite().all()


def test_a_decoder_is_calibrated_layer_after_layer():
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "attention_bias": True}
    ids = torch.randint(3, 20, (6, 40))  # few tokens: inputs that are correlated
    exact = llama_with(**sizes)(ids).logits

    def error(model):
        return (model(ids).logits - exact).norm() / exact.norm()

    calibrated = llama_with(**sizes)
    quantize_decoder(calibrated, ids)
    kinds = [type(module) for path, module in calibrated.named_modules() if path.endswith("_proj")]
    assert kinds == [Int4Linear] * 21 and type(calibrated.lm_head) is torch.nn.Linear
    assert error(calibrated) < 0.8 * error(llama_with(Int4Linear.from_weight, **sizes))


def test_a_decoder_without_a_list_of_layers_is_unsupported():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50))
    with pytest.raises(Unsupported, match="GPT2LMHeadModel"):
        quantize_decoder(model, torch.zeros(1, 4, dtype=torch.int64))


def test_layers_of_one_input_share_a_hessian_and_it_is_that_of_their_inputs():
    from llmstudy.models.gptq import _hessians

    x, other = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 5, 8)
    linears = {name: torch.nn.Linear(8, 4) for name in "abc"}
    with _hessians(linears) as found:
        for one, two in zip(x, other):
            linears["a"](one), linears["b"](one), linears["c"](two)
    assert found["a"] is found["b"]
    for name, inputs in (("a", x), ("c", other)):
        torch.testing.assert_close(found[name], inputs.flatten(0, -2).T @ inputs.flatten(0, -2))
