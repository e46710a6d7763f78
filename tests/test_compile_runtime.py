"""The runtime compile: tokens of the library's generate, a step that is compiled as one graph and once, or a refusal.

Most tests trace the step and run it as it is traced (backend ``eager``): what is compiled and when is the same, and it
takes no C++ compiler. One compiles.
"""

from functools import partial

import pytest
import torch
from conftest import llama_with
from llmstudy.errors import Unsupported
from llmstudy.kernels.linear import Int8Linear, W8A8Linear
from llmstudy.runtimes import compile as module
from llmstudy.runtimes.compile import CompileRuntime
from llmstudy.runtimes.generate import GenerateRuntime
from llmstudy.runtimes.graph import GraphRuntime
from tensor_subclass import make_linear
from transformers import CompileConfig

PROMPT, NEW = 9, 6
KINDS = {"dense": None, "int8": Int8Linear.from_weight, "w8a8": W8A8Linear.from_weight, "subclass": make_linear}


@pytest.fixture
def traced(monkeypatch):
    monkeypatch.setattr(module, "CompileConfig", partial(CompileConfig, backend="eager", mode=None))


@pytest.fixture
def opened():
    """``opened(model, …)``: a prepared runtime, closed after the test."""
    runtimes = []

    def opened(model, batch=2, prompt=PROMPT, new=NEW):
        runtimes.append(CompileRuntime(model, batch, prompt, new))
        runtimes[-1].info = runtimes[-1].prepare()
        return runtimes[-1]

    yield opened
    for runtime in runtimes:
        runtime.close()


def ids_of(batch=2, prompt=PROMPT):
    return torch.randint(3, 199, (batch, prompt), generator=torch.Generator().manual_seed(1))


def library(model, ids, new=NEW):
    return GenerateRuntime(model, *ids.shape, new).generate(ids).tokens


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_generate_and_the_step_is_one_graph(traced, opened, kind):
    model, ids = llama_with(KINDS[kind], num_hidden_layers=2), ids_of()
    runtime = opened(model)
    # W8A8 keeps a scale in its first step, which makes the step another one; no later step is.
    assert runtime.compiled == (2 if kind == "w8a8" else 1) and runtime.info.compile_s > 0
    for _ in range(2):
        timeline = runtime.generate(ids)
        assert torch.equal(timeline.tokens, library(model, ids))
    assert len(timeline.token_s) == NEW and timeline.token_s == sorted(timeline.token_s)


@pytest.mark.parametrize("changes", [{"architecture": "Qwen2"}, {"architecture": "Mistral", "sliding_window": 4}])
def test_other_architectures_run_too(traced, opened, changes):
    model, ids = llama_with(num_hidden_layers=2, **changes), ids_of()
    assert torch.equal(opened(model).generate(ids).tokens, library(model, ids))


def test_a_panel_of_models_and_runtimes_disturbs_no_step(traced, opened):
    """Twelve models, more than torch compiles of one function by default; graph joins the weights of one afterwards."""
    models = [llama_with(num_hidden_layers=1, hidden_size=48 + 12 * number) for number in range(12)]
    ids = ids_of()
    expected = [library(model, ids) for model in models]
    runtimes = [opened(model) for model in models]
    GraphRuntime(models[0], 2, PROMPT, NEW).prepare()
    for _ in range(2):
        for model, runtime, tokens in zip(models, runtimes, expected):
            assert torch.equal(runtime.generate(ids).tokens, tokens)
            assert torch.equal(library(model, ids), tokens)
    assert [runtime.compiled for runtime in runtimes] == [1] * 12


def test_another_workload_is_compiled_for_its_own_sizes(traced, opened):
    model = llama_with(num_hidden_layers=1)
    for batch, prompt, new in ((1, 5, 4), (3, 8, 2), (2, 6, 9)):
        runtime = opened(model, batch, prompt, new)
        ids = ids_of(batch, prompt)
        assert torch.equal(runtime.generate(ids).tokens, library(model, ids, new)) and runtime.compiled == 1
        runtime.close()


def test_a_single_token_comes_from_the_prompt_and_needs_no_step(opened):
    model, ids = llama_with(num_hidden_layers=1), ids_of()
    runtime = opened(model, new=1)
    assert runtime.info.compile_s == 0 and torch.equal(runtime.generate(ids).tokens, library(model, ids, 1))


def test_a_step_that_is_compiled_again_while_it_is_timed_is_an_error(traced, opened):
    """Of another process's reset, or of a size that changed: the time of compiling would be a time of the step."""
    runtime = opened(llama_with(num_hidden_layers=1))
    torch.compiler.reset()
    with pytest.raises(RuntimeError, match="compiled again"):
        runtime.generate(ids_of())
    assert runtime.generate(ids_of()).tokens.shape == (2, NEW)  # it is steady again


def test_what_is_not_compiled_is_refused(traced, monkeypatch):
    """By torch, switched off; by the library, which refuses some quantizers; at the limit, after which torch would go
    on without a word; and a step that breaks into parts."""
    model = llama_with(num_hidden_layers=1)
    with torch._dynamo.config.patch(disable=True), pytest.raises(Unsupported, match="no compiled frames|not compile"):
        CompileRuntime(model, 1, 4, 4).prepare()
    monkeypatch.setattr(type(model), "_valid_auto_compile_criteria", lambda *_: False)
    with pytest.raises(Unsupported, match="does not compile this precision"):
        CompileRuntime(model, 1, 4, 4).prepare()
    monkeypatch.undo()
    monkeypatch.setattr(module, "CompileConfig", partial(CompileConfig, backend="eager", mode=None))
    broken = llama_with(num_hidden_layers=1)
    broken.lm_head.register_forward_hook(lambda *_: torch._dynamo.graph_break())
    with pytest.raises(Unsupported, match="the token step cannot be compiled"):
        CompileRuntime(broken, 1, 4, 4).prepare()
    torch.compiler.reset()
    monkeypatch.setattr(module, "LIMIT", 1)
    CompileRuntime(model, 1, 4, 4).prepare()
    with pytest.raises(Unsupported, match="the token step cannot be compiled.*limit"):
        CompileRuntime(llama_with(num_hidden_layers=1, hidden_size=96), 1, 4, 4).prepare()
    torch.compiler.reset()


def test_bitsandbytes_is_refused_by_the_library(measuring):
    session = measuring("probe", precision="nf4", runtime="compile")
    model, _ = session.load_model()
    with pytest.raises(Unsupported, match="does not compile this precision"):
        CompileRuntime(model, 1, 4, 4).prepare()


def test_without_a_compiler_it_is_refused():
    torch.compiler.reset()
    without = {"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}
    with torch._inductor.config.patch(without), pytest.raises(Unsupported, match="C.. compiler"):
        CompileRuntime(llama_with(num_hidden_layers=1, hidden_size=60), 1, 4, 4).prepare()


def test_a_compiled_step_gives_the_tokens_of_generate(opened):
    model, ids = llama_with(Int8Linear.from_weight, num_hidden_layers=1), ids_of(1)
    runtime, seen = opened(model, 1), []
    tokens = library(model, ids)
    assert torch.equal(runtime.generate(ids).tokens, tokens) and runtime.compiled == 1
    runtime.score(ids, tokens, lambda number, logits: seen.append(logits.argmax(-1)))
    assert torch.equal(torch.stack(seen, 1), tokens)


def test_a_probe_of_it_proves_its_kernel_and_times_its_compilation(traced, measuring):
    from llmstudy.measure import measure

    session = measuring("probe", runtime="compile")
    entry = measure(session)["workloads"][0]
    assert (entry["status"], entry["reason"]) == ("ok", "") and entry["attention_kernels"]
    assert entry["compile_s"] > 0 and "kv_cache_measured_prefill_bytes" not in entry
