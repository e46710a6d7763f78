"""The graph runtime on the CPU: token for token what the library generates, and what it refuses."""

import pytest
import torch
from conftest import tiny_llama_config
from llmstudy.errors import Unsupported
from llmstudy.kernels.linear import Int8Linear
from llmstudy.runtimes.generate import GenerateRuntime
from llmstudy.runtimes.graph import GraphRuntime
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

PROMPT, NEW = 13, 24
# bf16 has 8 significant bits: logits of order 1 that differ by less than this are a tie.
NEAR_TIE = 2**-5


def build(int8=False, dtype=torch.float32, **changes):
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_llama_config(initializer_range=0.2, **changes)).to(dtype).eval()
    if int8:
        for path, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and path != "lm_head":
                bias = None if module.bias is None else module.bias.data
                model.set_submodule(path, Int8Linear.from_weight(module.weight.data, bias))
    return model


def both(model, batch, new=NEW):
    torch.manual_seed(1)
    ids = torch.randint(3, 199, (batch, PROMPT))
    eager = GenerateRuntime(model, batch, PROMPT, new).generate(ids)
    runtime = GraphRuntime(model, batch, PROMPT, new)
    runtime.prepare()
    graph = runtime.generate(ids)
    return ids, eager, graph, runtime


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("int8", [False, True], ids=["dense", "int8"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 6},
        {"attention_bias": True, "mlp_bias": True},
        {"head_dim": 10, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    ],
    ids=["grouped", "tied", "multi-head", "biases", "rope-scaling"],
)
def test_tokens_equal_those_of_generate_in_fp32(changes, int8, batch):
    _, eager, graph, _ = both(build(int8, **changes), batch)
    assert torch.equal(graph.tokens, eager.tokens)
    assert len(set(graph.tokens.flatten().tolist())) > 3  # a model that repeats one token would agree by accident


@pytest.mark.parametrize("int8", [False, True], ids=["dense", "int8"])
def test_in_bf16_tokens_part_only_at_a_near_tie(int8):
    model = build(int8, torch.bfloat16)
    ids, eager, graph, _ = both(model, 2)
    for prompt, ours, theirs in zip(ids, graph.tokens, eager.tokens):
        different = (ours != theirs).nonzero()
        if len(different):
            at = int(different[0])
            with torch.no_grad():
                logits = model(torch.cat([prompt, theirs[:at]])[None]).logits[0, -1].float()
            assert abs(logits[ours[at]] - logits[theirs[at]]) <= NEAR_TIE * logits.abs().max()


def test_the_time_line_is_one_ascending_stamp_a_token():
    _, _, graph, _ = both(build(), 2)
    assert graph.tokens.shape == (2, NEW) and graph.tokens.dtype == torch.int64
    assert len(graph.token_s) == NEW
    assert all(earlier < later for earlier, later in zip(graph.token_s, graph.token_s[1:]))


def test_one_new_token_and_a_second_call_work():
    ids, eager, graph, runtime = both(build(), 1, new=1)
    assert torch.equal(graph.tokens, eager.tokens)
    assert torch.equal(runtime.generate(ids).tokens, graph.tokens)


def test_the_last_logits_are_the_library_s():
    model = build()
    ids, _, graph, runtime = both(model, 2)
    with torch.no_grad():
        logits = model(torch.cat([ids, graph.tokens[:, :-1]], dim=1)).logits[:, -1]
    torch.testing.assert_close(runtime.engine.logits, logits, rtol=1e-4, atol=1e-4)


def test_the_model_still_works_and_shares_memory_with_the_fused_weights():
    model = build()
    ids = torch.randint(3, 199, (1, PROMPT))
    with torch.no_grad():
        before = model(ids).logits
    runtime = GraphRuntime(model, 1, PROMPT, NEW)
    runtime.prepare()
    attention = model.model.layers[0].self_attn
    storages = {part.weight.untyped_storage().data_ptr() for part in (attention.q_proj, attention.k_proj)}
    assert len(storages) == 1
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, before)


def test_a_prompt_of_another_shape_is_refused():
    runtime = GraphRuntime(build(), 1, PROMPT, NEW)
    runtime.prepare()
    with pytest.raises(ValueError, match="prepared for"):
        runtime.generate(torch.zeros(1, PROMPT + 1, dtype=torch.int64))


def test_another_architecture_is_unsupported():
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=2, n_layer=1, vocab_size=10))
    with pytest.raises(Unsupported, match="GPT2LMHeadModel"):
        GraphRuntime(model, 1, 4, 4).prepare()


def test_another_activation_is_unsupported():
    with pytest.raises(Unsupported, match="gelu"):
        GraphRuntime(build(hidden_act="gelu"), 1, 4, 4).prepare()


def test_a_rope_that_changes_with_the_length_is_unsupported():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    with pytest.raises(Unsupported, match="dynamic"):
        GraphRuntime(build(rope_parameters=rope), 1, 200, 100).prepare()
