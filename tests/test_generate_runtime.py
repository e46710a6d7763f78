"""The runtime generate: the tokens of greedy decoding, a stamp for each, and no end before the last one."""

import pytest
import tiny
import torch
from llmstudy import runtimes
from llmstudy.errors import StudyError
from llmstudy.runtimes import generate
from llmstudy.runtimes.generate import GenerateRuntime

IDS = torch.tensor([[5, 9, 200, 31]])


@pytest.fixture
def model(tmp_path):
    return tiny.save_model(tmp_path / "source")


def greedy(model, ids, new_tokens: int):
    """Greedy decoding without a cache, one whole forward pass a token."""
    for _ in range(new_tokens):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return ids[:, -new_tokens:]


@pytest.mark.parametrize(("batch", "prompt", "new_tokens"), [(1, 5, 8), (3, 17, 6), (2, 1, 2), (1, 9, 1)])
def test_tokens_are_those_of_greedy_decoding(model, batch, prompt, new_tokens):
    ids = torch.randint(2, tiny.VOCABULARY, (batch, prompt), generator=torch.Generator().manual_seed(batch))
    runtime = GenerateRuntime(model, batch, prompt, new_tokens)
    assert runtime.prepare().compile_s == 0
    timeline = runtime.generate(ids)
    runtime.close()
    assert timeline.tokens.tolist() == greedy(model, ids, new_tokens).tolist()
    assert timeline.tokens.dtype == torch.int64 and timeline.tokens.device.type == "cpu"
    assert len(timeline.token_s) == new_tokens
    assert timeline.token_s == sorted(timeline.token_s) and timeline.token_s[0] > 0


def test_a_stamp_follows_the_forward_pass_of_its_token(model, monkeypatch):
    """A clock that counts forward passes: token 0 comes after the first, which is the prompt's; then one each."""
    passes = [0]
    model.register_forward_hook(lambda *_: passes.__setitem__(0, passes[0] + 1))
    monkeypatch.setattr(generate.time, "perf_counter", lambda: passes[0])
    assert GenerateRuntime(model, 1, 4, 5).generate(IDS).token_s == [1, 2, 3, 4, 5]


def test_end_of_text_does_not_stop_it(model):
    """The generation config beside the weights names an end of text; every run must yield the same number of tokens."""
    model.generation_config.eos_token_id = [int(token) for token in greedy(model, IDS, 3)[0]]  # each would end it
    with torch.no_grad():
        stopped = model.generate(IDS, max_new_tokens=9, do_sample=False, pad_token_id=0)
    assert stopped.shape[1] == 5  # the library would stop after the first
    timeline = GenerateRuntime(model, 1, 4, 9).generate(IDS)
    assert timeline.tokens.shape == (1, 9) and len(timeline.token_s) == 9
    assert timeline.tokens.tolist() == greedy(model, IDS, 9).tolist()


def test_the_models_own_sampling_is_off(model):
    """What a published generation_config.json sets (temperature, penalties) must not change what is timed."""
    model.generation_config.update(do_sample=True, temperature=5.0, top_p=0.5, repetition_penalty=9.0, max_length=6)
    assert GenerateRuntime(model, 1, 4, 8).generate(IDS).tokens.tolist() == greedy(model, IDS, 8).tolist()


def test_calls_are_independent_and_without_gradients(model):
    seen = []
    model.lm_head.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    runtime = GenerateRuntime(model, 1, 4, 5)
    alone = runtime.generate(IDS).tokens
    runtime.generate(torch.tensor([[7, 8, 9, 10]]))
    assert runtime.generate(IDS).tokens.tolist() == alone.tolist()
    assert len(seen) == 15 and not any(seen)


def test_generated_texts_are_greedy_and_go_on_after_an_end_of_text(model, tmp_path, measuring):
    from llmstudy.measure import measure
    from transformers import AutoTokenizer

    model.generation_config.update(eos_token_id=[*range(2, tiny.VOCABULARY)], repetition_penalty=3.0)
    model.save_pretrained(tmp_path / "source")
    folder = tiny.fetch({"type": "path", "folder": str(tmp_path / "source")}, tmp_path / "model")
    prompts = ["Once upon a time", "The otter"]
    session = measuring("generations", model=folder, prompts=prompts, new_tokens=7)
    results = measure(session)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "source")
    assert [len(saved["prompts"]) for saved in session.saved] == [1, 2]
    for entry in results["prompts"]:
        ids = tokenizer(entry["prompt"], return_tensors="pt")["input_ids"]
        assert entry["tokens"] == greedy(model, ids, 7)[0].tolist()
        assert entry["text"] == tokenizer.decode(entry["tokens"])


def test_facts_about_runtimes():
    assert runtimes.get("generate") is GenerateRuntime and runtimes.BASE == "generate"
    assert runtimes.kernels_of("generate", ["eager", "sdpa"]) == ["eager", "sdpa"]
    assert runtimes.kernels_of("graph", ["eager", "sdpa"]) == ["sdpa"]
    assert [runtimes.facts(name).own_cache for name in runtimes.MODULES] == [False, True, True]
    assert runtimes.module_of("graph") == "runtimes.graph"
    with pytest.raises(StudyError, match="'vllm'.*generate, compile, graph"):
        runtimes.get("vllm")
