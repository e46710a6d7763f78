"""The decode step and prefill of the CUDA engine, interpreted, against the library's generate in fp32."""

import weakref

import pytest
import torch
import triton_on_numpy  # noqa: F401
from conftest import llama_with
from llmstudy.kernels.linear import FEW_ROWS, Int8Linear, W8A8Linear
from llmstudy.runtimes.generate import GenerateRuntime
from llmstudy.runtimes.graph import step as step_module
from llmstudy.runtimes.graph.layer import last_logits
from llmstudy.runtimes.graph.prompt import Prompt
from llmstudy.runtimes.graph.step import DecodeStep, attention_warps, operand_of
from llmstudy.runtimes.graph.weights import extract

PROMPT, NEW = 37, 3


@pytest.mark.parametrize(
    ("batch", "int8", "splits", "changes"),
    [
        (1, False, 4, {}),
        (1, False, 4, {"num_key_value_heads": 1}),
        (2, True, 2, {"tie_word_embeddings": True}),
        (1, True, 1, {"num_key_value_heads": 6, "head_dim": 10, "attention_bias": True}),
        (1, False, 4, {"architecture": "Mistral", "sliding_window": 18}),
        (2, False, 1, {"architecture": "Mistral", "sliding_window": PROMPT + 2, "num_key_value_heads": 1}),
        (2, False, 2, {"architecture": "Qwen2", "tie_word_embeddings": True}),
        (1, True, 2, {"architecture": "Qwen3", "head_dim": 24}),
    ],
)
def test_tokens_equal_those_of_generate(monkeypatch, batch, int8, changes, splits):
    monkeypatch.setattr(step_module, "TOKEN_BLOCK", 16)
    monkeypatch.setattr(step_module, "attention_splits", lambda programs, length: splits)
    model = llama_with(Int8Linear.from_weight if int8 else None, num_hidden_layers=1, **changes)
    ids = torch.randint(3, 199, (batch, PROMPT))
    expected = GenerateRuntime(model, batch, PROMPT, NEW).generate(ids).tokens
    weights = extract(model)
    with torch.inference_mode():
        step = DecodeStep(weights, batch, PROMPT, NEW)
        step.position.fill_(PROMPT - 1)
        step.logits.copy_(last_logits(weights, Prompt(weights, step.cache, step.cos, step.sin).run(ids)))
        step.sample()
        for _ in range(NEW - 1):
            step.run()
        logits = model(torch.cat([ids, expected[:, :-1]], dim=1)).logits[:, -1]
    assert torch.equal(step.tokens, expected)
    torch.testing.assert_close(step.logits, logits, rtol=1e-3, atol=1e-3)
    assert step.position.tolist() == [PROMPT + NEW - 1] * batch
    assert not step.arrivals.any()


def test_rows_whose_activations_are_quantized_do_not_take_the_weight_only_kernel():
    """Or one precision would mean two under two runtimes."""
    weight_only, both = (kind.from_weight(torch.randn(40, 64), None) for kind in (Int8Linear, W8A8Linear))
    assert operand_of(both, FEW_ROWS).weight is both.weight and operand_of(both, FEW_ROWS + 1) is None
    assert operand_of(weight_only, 64).weight is weight_only.weight


def test_wide_groups_of_queries_get_more_warps():
    assert [attention_warps(16, 64), attention_warps(16, 128), attention_warps(16, 256), attention_warps(64, 128)] == [
        2, 2, 4, 4
    ]  # fmt: skip


def test_a_prompt_keeps_no_activation_longer_than_it_is_used():
    """The widest ones are most of a long prompt's memory."""
    weights = extract(llama_with())
    outputs, alive = [], []

    def hook(module, inputs, output):
        alive.append(sum(output() is not None for output in outputs))
        outputs.append(weakref.ref(output))

    for layer in weights.layers:
        for module in (layer.qkv, layer.output, layer.gate_up, layer.down):
            module.register_forward_hook(hook)
    with torch.inference_mode():
        step = DecodeStep(weights, 1, PROMPT, NEW)
        Prompt(weights, step.cache, step.cos, step.sin).run(torch.zeros(1, PROMPT, dtype=torch.int64))
    # Only the output of the block before, until it is added to the residual stream; the first block has none before it.
    assert alive == [0, 0, 1, 1] + [1, 1, 1, 1] * 2


def test_splits_never_exceed_the_blocks_of_the_context():
    assert step_module.attention_splits(programs=32, length=577) == 16
    assert step_module.attention_splits(programs=32, length=16384) == 32
    assert step_module.attention_splits(programs=2048, length=4096) == 1
    assert step_module.attention_splits(programs=1, length=step_module.TOKEN_BLOCK) == 1
