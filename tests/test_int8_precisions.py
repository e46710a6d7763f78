"""Loading the int8 precisions from weights on the CPU: what becomes int8, and which columns stay in 16 bit."""

from dataclasses import dataclass, replace

import pytest
import torch
from conftest import tiny_llama_config
from llmstudy.errors import Unsupported
from llmstudy.kernels.linear import Int8Linear
from llmstudy.models import precisions
from llmstudy.models.precisions.int8 import THRESHOLD, find_outlier_columns
from transformers import LlamaForCausalLM

NAMES = ["int8-fused", "int8-fused-outlier", "int8-w8a8"]


@dataclass(frozen=True)
class Held:
    """The weights of a model in memory."""

    model: LlamaForCausalLM
    real: bool = True

    def config(self):
        return self.model.config

    def tensor(self, name, shape, dtype, device):
        return self.model.state_dict()[name].to(dtype).clone()


@pytest.fixture
def request_():
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_llama_config(initializer_range=0.1)).eval()
    with torch.no_grad():
        # Norm weights that make two input columns of every attention outliers.
        for layer in model.model.layers:
            layer.input_layernorm.weight[[5, 30]] = 40.0
    ids = torch.randint(3, 199, (1, 64))
    return precisions.LoadRequest(Held(model), "cpu", "sdpa", calibration_ids=ids)


@pytest.mark.parametrize("name", NAMES)
def test_every_decoder_linear_is_int8_and_the_rest_bf16(request_, name):
    model = precisions.get(name).load(request_)
    linears = {path for path, module in model.named_modules() if isinstance(module, Int8Linear)}
    assert len(linears) == 3 * 7
    assert type(model.lm_head) is torch.nn.Linear
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", NAMES)
def test_logits_stay_close_to_the_dense_model(request_, name):
    ids = torch.randint(3, 199, (1, 20))
    with torch.no_grad():
        dense = request_.weights.model(ids).logits
        int8 = precisions.get(name).load(request_)(ids).logits.float()
    assert ((int8 - dense).norm() / dense.norm()).item() < 0.15


def test_outlier_columns_are_those_that_the_text_excites(request_):
    model = precisions.get("int8-fused-outlier").load(request_)
    # An independent look: the inputs of the dense model's projections.
    seen = {}
    attention = request_.weights.model.model.layers[0].self_attn.q_proj
    handle = attention.register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0]))
    with torch.no_grad():
        request_.weights.model(request_.calibration_ids)
    handle.remove()
    excited = (seen["x"].abs() > THRESHOLD).any(dim=1)[0].nonzero().flatten().tolist()
    first = model.model.layers[0].self_attn
    assert {5, 30} <= set(excited)
    assert first.q_proj.outlier_columns.tolist() == excited
    source = request_.weights.model.model.layers[0].self_attn.q_proj.weight
    assert torch.equal(first.q_proj.outlier_weight, source[:, first.q_proj.outlier_columns].bfloat16())
    # q, k and v share their input, so they share the columns and can be fused.
    assert torch.equal(first.q_proj.outlier_columns, first.v_proj.outlier_columns)


def test_no_column_is_an_outlier_below_the_threshold(request_):
    model = precisions.get("int8-fused").load(request_)
    columns = find_outlier_columns(model, request_.calibration_ids, threshold=1e9)
    assert len(columns) == 21 and not any(found.numel() for found in columns.values())


def test_outliers_need_calibration_text(request_):
    with pytest.raises(Unsupported, match="calibration text"):
        precisions.get("int8-fused-outlier").load(replace(request_, calibration_ids=None))
