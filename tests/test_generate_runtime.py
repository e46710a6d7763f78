"""The eager runtime: the tokens of greedy decoding, one stamp each, and no end before the last one."""

import pytest
import tiny
import torch
from llmstudy import runtimes
from llmstudy.errors import StudyError
from llmstudy.runtimes import generate as eager
from llmstudy.runtimes.generate import GenerateRuntime


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("model"))


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
    handle = model.register_forward_hook(lambda *_: passes.__setitem__(0, passes[0] + 1))
    monkeypatch.setattr(eager.time, "perf_counter", lambda: passes[0])
    try:
        timeline = GenerateRuntime(model, 1, 4, 5).generate(torch.tensor([[5, 9, 200, 31]]))
    finally:
        handle.remove()
    assert timeline.token_s == [1, 2, 3, 4, 5]


def test_end_of_text_does_not_stop_it(tmp_path):
    """The generation config beside the weights names an end of text; every run must yield the same number of tokens."""
    model = tiny.save_model(tmp_path)
    ids = torch.tensor([[5, 9, 200, 31]])
    model.generation_config.eos_token_id = [int(token) for token in greedy(model, ids, 3)[0]]  # each would end it
    with torch.no_grad():
        stopped = model.generate(ids, max_new_tokens=9, do_sample=False, pad_token_id=0)
    assert stopped.shape[1] == 5  # the library would stop after the first
    timeline = GenerateRuntime(model, 1, 4, 9).generate(ids)
    assert timeline.tokens.shape == (1, 9) and len(timeline.token_s) == 9
    assert timeline.tokens.tolist() == greedy(model, ids, 9).tolist()


def test_the_models_own_sampling_is_off(tmp_path):
    """What a published generation_config.json sets (temperature, penalties) must not change what is timed."""
    model = tiny.save_model(tmp_path)
    model.generation_config.update(do_sample=True, temperature=5.0, top_p=0.5, repetition_penalty=9.0, max_length=6)
    ids = torch.tensor([[5, 9, 200, 31]])
    assert GenerateRuntime(model, 1, 4, 8).generate(ids).tokens.tolist() == greedy(model, ids, 8).tolist()


def test_two_calls_do_not_know_of_each_other(model):
    runtime = GenerateRuntime(model, 1, 4, 5)
    first, second = torch.tensor([[5, 9, 200, 31]]), torch.tensor([[7, 8, 9, 10]])
    alone = runtime.generate(first).tokens
    runtime.generate(second)
    assert runtime.generate(first).tokens.tolist() == alone.tolist()


def test_gradients_are_off(model):
    seen = []
    handle = model.lm_head.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    try:
        GenerateRuntime(model, 1, 2, 2).generate(torch.tensor([[5, 9]]))
    finally:
        handle.remove()
    assert seen and not any(seen)


def test_samples_are_greedy_and_go_on_after_an_end_of_text(tmp_path, tiny_corpus):
    from llmstudy.measure import measure

    model = tiny.save_model(tmp_path / "source")
    model.generation_config.update(eos_token_id=[*range(2, tiny.VOCABULARY)], repetition_penalty=3.0)
    model.save_pretrained(tmp_path / "source")
    folder = tiny.fetch({"type": "path", "folder": str(tmp_path / "source")}, tmp_path / "model")
    saved = []
    told = tiny.job("generations", folder, tiny_corpus, prompts=["Once upon a time", "The otter"], new_tokens=7)
    samples = measure(tiny.session(told, tmp_path / "a", lambda found: saved.append(len(found["prompts"]))))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "source")
    assert saved == [1, 2]
    for entry in samples["prompts"]:
        ids = tokenizer(entry["prompt"], return_tensors="pt")["input_ids"]
        assert entry["tokens"] == greedy(model, ids, 7)[0].tolist()
        assert entry["text"] == tokenizer.decode(entry["tokens"])


def test_an_unknown_runtime_is_told():
    assert runtimes.get("generate") is GenerateRuntime
    with pytest.raises(StudyError, match="'vllm'.*eager, graph"):
        runtimes.get("vllm")
