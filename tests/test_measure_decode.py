"""Forced tokens: scored through the token step of each runtime, against whole passes over every prefix."""

import numpy as np
import pytest
import tiny
import torch
from conftest import llama_with
from llmstudy import kinds
from llmstudy.config import complete
from llmstudy.errors import StudyError
from llmstudy.measure import measure, scoring
from llmstudy.measure.session import Session
from llmstudy.runtimes import get
from llmstudy.runtimes.graph import plain
from transformers import AutoModelForCausalLM, AutoTokenizer

DECODE = {"batches": [1, 2, 4], "prompts": 4, "prompt_tokens": 10, "new_tokens": 8}
LIBRARY = DECODE | {"batches": [0, *DECODE["batches"]]}
NAMES = [f"decode-b{batch}-p10-n8" for batch in DECODE["batches"]]
SHORT = "Too short."


@pytest.fixture
def run(measuring, tmp_path, monkeypatch):
    """(entries by protocol, arrays by protocol and quantity) of a job of quality with forced tokens alone."""
    corpus = tiny.save_corpus(tmp_path / "corpus", [SHORT, *tiny.DOCUMENTS])
    monkeypatch.setattr(Session, "free", lambda session: None)  # a second for each protocol, and nothing to free

    def run(folder="artifacts", kind="quality", **changes):
        changes = {"decode": DECODE, "corpus": corpus} | changes
        if kind == "quality":
            changes.setdefault("protocols", [])
        session = measuring(kind, folder, **changes)
        entries = {entry["protocol"]: entry for entry in measure(session)[session.job.cases or "corpora"]}
        path = session.artifacts / "arrays.npz"
        arrays = dict(np.load(path)) if path.exists() else {}
        return entries, {tuple(key.split("/")[1:]): array for key, array in arrays.items()}

    return run


def independent(folder, bos: bool = False) -> np.ndarray:
    """−ln p of new tokens 1 … 7 of each document that is long enough, one whole pass a token."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for text in tiny.DOCUMENTS[: DECODE["prompts"]]:
        ids = [tiny.SHAPE["bos_token_id"]] * bos + tokenizer(text, add_special_tokens=False)["input_ids"]
        for at in range(DECODE["prompt_tokens"] + 1, DECODE["prompt_tokens"] + DECODE["new_tokens"]):
            with torch.no_grad():
                logits = model(torch.tensor([ids[:at]])).logits[0, -1].double()
            found.append((torch.logsumexp(logits, 0) - logits[ids[at]]).item())
    return np.array(found)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("runtime", ["generate", "graph"])
def test_nll_is_that_of_whole_passes_in_the_order_of_the_text(run, tiny_weights, runtime, bos):
    entries, arrays = run(runtime=runtime, bos=bos, decode=LIBRARY if runtime == "generate" else DECODE)
    expected = independent(tiny_weights.parent / "source", bos)
    names = [name + "-bos" * bos for name in (["pass-p10-n8"] if runtime == "generate" else []) + NAMES]
    assert list(entries) == names and len(expected) == 28
    for name in names:
        np.testing.assert_allclose(arrays[name, "nll"], expected, atol=2e-4)
        assert arrays[name, "document"].tolist() == [0] * 7 + [1] * 7 + [2] * 7 + [3] * 7
        assert entries[name]["tokens"] == 28 and entries[name]["mean_nll"] == pytest.approx(expected.mean(), abs=1e-4)
        assert 20 < entries[name]["words"] + entries[name]["utf8_bytes"] < 28 * 12


def test_distances_are_to_the_reference_s_own_token_step(run):
    """Under the base runtime its own is the noise floor; under graph it is compared like any other."""
    stored, _ = run("reference", "reference")
    assert [stored[name]["tokens"] for name in NAMES] == [28] * 3
    rounding = max(stored[name]["rounding_kl_max_nats"] for name in NAMES)
    for runtime in ("generate", "graph"):
        own, coarse = (run(f"{runtime}-{name}", runtime=runtime, precision=name)[1] for name in ("fp32", "nf4"))
        for name in NAMES:
            assert np.abs(own[name, "kl"]).max() < 2 * rounding + 1e-6 and own[name, "top1"].all()
            assert coarse[name, "kl"].mean() > 100 * rounding


def test_a_fault_of_the_token_step_shows_there_alone(run, monkeypatch):
    """Rotated by one position too many, in one runtime's step: the pass and the other runtime do not see it."""
    run("reference", "reference")
    right = plain.rotate
    monkeypatch.setattr(plain, "rotate", lambda x, cos, sin: x if x.shape[2] == 1 else right(x, cos, sin))
    faulty, sound = (run(runtime, runtime=runtime)[0] for runtime in ("graph", "generate"))
    for name in NAMES:
        assert faulty[name]["mean_kl"] > 1e-3 > 1e3 * sound[name]["mean_kl"]


def test_what_cannot_be_decoded_costs_no_other_and_says_why(run, monkeypatch):
    entries, _ = run(decode=DECODE | {"prompts": 8}, protocols=[{"window": 32, "stride": 16}])
    reasons = {name: entry["reason"] for name, entry in entries.items()}
    assert reasons.pop("w32-s16") == ""
    assert set(reasons.values()) == {
        "corpus 'tiny-text': 6 documents have 18 tokens; quality.decode.prompts wants 8 of them"
    }
    entries, arrays = run("b", decode=DECODE)
    assert "left no log-probabilities of corpus tiny-text under decode-b1-p10-n8" in entries[NAMES[0]]["unpaired"]


def test_logits_of_one_step_exist_at_a_time(run, monkeypatch):
    sizes, real = [], torch.log_softmax
    monkeypatch.setattr(scoring.torch, "log_softmax", lambda x, **how: sizes.append(len(x)) or real(x, **how))
    run(runtime="graph")
    assert sizes == [1] * 28 + [2] * 14 + [4] * 7


@pytest.mark.parametrize("runtime", ["generate", "graph"])
def test_scoring_goes_on_from_the_given_tokens_and_leaves_the_runtime_as_it_was(runtime):
    model, seen = llama_with(), []
    ids = torch.randint(3, 199, (2, 20))
    one = get(runtime)(model, 2, 13, 7)
    one.prepare()
    before = one.generate(ids[:, :13]).tokens
    one.score(ids[:, :13], ids[:, 13:], lambda number, logits: seen.append((number, logits.clone())))
    assert [number for number, _ in seen] == list(range(7))
    with torch.no_grad():
        expected = model(ids).logits[:, 12:-1]
    torch.testing.assert_close(torch.stack([logits for _, logits in seen], 1), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(one.generate(ids[:, :13]).tokens, before)


def test_each_runtime_has_a_record_where_its_step_is_scored(tmp_path):
    def planned(**decode):
        config = tiny.study(
            tmp_path, runtimes=["generate", "graph"], quality_only=["fp16"], attention=["sdpa", "eager"]
        )
        config["quality"] = config["quality"] | {"decode": decode}
        study = complete(config)
        kinds.check(study)
        jobs = [kinds.job(study, one) for one in kinds.records(study, "quality", "reference")]
        found = {(job.identity.kind, *job.identity.configuration): job.settings for job in jobs}
        return {key: (len(its["protocols"]), its["decode"]["batches"]) for key, its in found.items()}

    def base(passes, batches):
        own = {("quality", name, "eager", "generate"): (1, passes + batches) for name in ("fp32", "bf16", "fp16")}
        return own | {("reference", "fp32", "eager", "generate"): (1, batches)}

    assert planned() == base([], [])
    graph = {("quality", name, "sdpa", "graph"): (0, [1]) for name in ("fp32", "bf16")}
    assert planned(batches=[1]) == base([0], [1]) | graph
    with pytest.raises(StudyError, match="quality.decode.batches: 5 does not divide quality.decode.prompts, 32"):
        planned(batches=[1, 5])
    with pytest.raises(StudyError, match="quality.decode: prompt_tokens 64 . new_tokens 300 = 364 tokens"):
        planned(batches=[1], new_tokens=300)
