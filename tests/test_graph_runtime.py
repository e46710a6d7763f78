"""The graph runtime on the CPU: token for token what the library generates, and what it refuses."""

import pytest
import torch
from conftest import llama_with
from llmstudy.errors import Unsupported
from llmstudy.kernels.linear import Int8Linear
from llmstudy.runtimes.generate import GenerateRuntime
from llmstudy.runtimes.graph import GraphRuntime
from tensor_subclass import make_linear
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

PROMPT, NEW = 13, 24
# bf16 has 8 significant bits: logits of order 1 that differ by less than this are a tie.
NEAR_TIE = 2**-5
KINDS = {"dense": None, "int8": Int8Linear.from_weight}


def both(model, batch, new=NEW):
    torch.manual_seed(1)
    ids = torch.randint(3, 199, (batch, PROMPT))
    library = GenerateRuntime(model, batch, PROMPT, new).generate(ids)
    runtime = GraphRuntime(model, batch, PROMPT, new)
    runtime.prepare()
    return ids, library, runtime.generate(ids), runtime


ROPE = {"rope_theta": 10000.0, "factor": 4.0}
YARN = ROPE | {"rope_type": "yarn", "original_max_position_embeddings": 8}
LLAMA3 = ROPE | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FACTORS = {"short_factor": [1.0, 1.5, 2.0, 3.0, 4.0], "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0], "attention_factor": 1.2}
DIVISORS = ROPE | FACTORS | {"rope_type": "longrope", "original_max_position_embeddings": 8}
SLIDING = {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 1}  # the first layer has no window
CASES = {
    "grouped": {},
    "tied": {"tie_word_embeddings": True},
    "multi-head": {"num_key_value_heads": 6},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "rope-linear": {"head_dim": 10, "rope_parameters": ROPE | {"rope_type": "linear"}},
    "rope-llama3": {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 8}},
    "rope-yarn": {"rope_parameters": YARN},
    "rope-divisors": {"head_dim": 10, "rope_parameters": DIVISORS},  # as GGUF files have them
    "mistral": {"architecture": "Mistral", "sliding_window": None, "head_dim": 24},
    "mistral-window": {"architecture": "Mistral", "sliding_window": 7},
    "mistral-wide-window": {"architecture": "Mistral", "sliding_window": PROMPT + 3},
    "mistral-window-of-two": {"architecture": "Mistral", "sliding_window": 2},
    "qwen2": {"architecture": "Qwen2"},
    "qwen2-window-tied": {"architecture": "Qwen2", "tie_word_embeddings": True, **SLIDING},
    "qwen3": {"architecture": "Qwen3", "head_dim": 16},
    "qwen3-window": {"architecture": "Qwen3", **SLIDING},
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_tokens_equal_those_of_generate_in_fp32(case, kind, batch):
    _, library, graph, runtime = both(llama_with(KINDS[kind], **CASES[case]), batch)
    assert torch.equal(graph.tokens, library.tokens)
    assert len(set(graph.tokens.flatten().tolist())) > 3  # a model that repeats one token would agree by accident


@pytest.mark.parametrize("kind", KINDS)
def test_in_bf16_tokens_part_only_at_a_near_tie(kind):
    model = llama_with(KINDS[kind], torch.bfloat16)
    ids, library, graph, _ = both(model, 2)
    for prompt, ours, theirs in zip(ids, graph.tokens, library.tokens):
        different = (ours != theirs).nonzero()
        if len(different):
            at = int(different[0])
            with torch.no_grad():
                logits = model(torch.cat([prompt, theirs[:at]])[None]).logits[0, -1].float()
            assert abs(logits[ours[at]] - logits[theirs[at]]) <= NEAR_TIE * logits.abs().max()


def test_stamps_ascend_and_the_last_logits_are_the_library_s():
    model = llama_with()
    ids, _, graph, runtime = both(model, 2)
    assert graph.tokens.shape == (2, NEW) and graph.tokens.dtype == torch.int64 and len(graph.token_s) == NEW
    assert all(earlier < later for earlier, later in zip(graph.token_s, graph.token_s[1:]))
    with torch.no_grad():
        logits = model(torch.cat([ids, graph.tokens[:, :-1]], dim=1)).logits[:, -1]
    torch.testing.assert_close(runtime.engine.logits, logits, rtol=1e-4, atol=1e-4)


def test_one_new_token_and_a_second_call_work():
    ids, library, graph, runtime = both(llama_with(), 1, new=1)
    assert torch.equal(graph.tokens, library.tokens)
    assert torch.equal(runtime.generate(ids).tokens, graph.tokens)


def test_the_model_still_works_and_shares_memory_with_the_fused_weights():
    model = llama_with()
    ids = torch.randint(3, 199, (1, PROMPT))
    with torch.no_grad():
        before = model(ids).logits
    GraphRuntime(model, 1, PROMPT, NEW).prepare()
    attention = model.model.layers[0].self_attn
    assert len({part.weight.untyped_storage().data_ptr() for part in (attention.q_proj, attention.k_proj)}) == 1
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, before)


def test_a_prompt_of_another_shape_is_refused():
    runtime = GraphRuntime(llama_with(), 1, PROMPT, NEW)
    runtime.prepare()
    with pytest.raises(ValueError, match="prepared for"):
        runtime.generate(torch.zeros(1, PROMPT + 1, dtype=torch.int64))


def with_a_subclass_for_its_embedding():
    model = llama_with()
    weight = make_linear(model.model.embed_tokens.weight.data, None).weight
    model.model.embed_tokens.weight = nn.Parameter(weight, requires_grad=False)
    return model


DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
UNSUPPORTED = {
    "GPT2LMHeadModel": lambda: GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=2, n_layer=1, vocab_size=10)),
    "gelu": lambda: llama_with(hidden_act="gelu"),
    "dynamic": lambda: llama_with(rope_parameters=DYNAMIC),
    "longrope": lambda: llama_with(head_dim=10, rope_parameters=DIVISORS | {"long_factor": [1.0, 2.0, 3.0, 4.0, 5.0]}),
    "Int8Tensor": with_a_subclass_for_its_embedding,
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_it_does_not_know_is_refused_by_name(name):
    """Another architecture, another activation, angles that change with the length, an embedding without memory."""
    with pytest.raises(Unsupported, match=name):
        GraphRuntime(UNSUPPORTED[name](), 1, 4, 4).prepare()
