"""Quality: against an independent perplexity, closed forms, known distributions, and the reference against itself."""

import gc
import math
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from llmstudy.errors import StudyError
from llmstudy.measure import measure, quality, reference, scoring
from llmstudy.measure.reference import Reference
from llmstudy.measure.scoring import Protocol
from llmstudy.measure.text import token_stream
from llmstudy.runner.failures import classify


@pytest.fixture
def run(measuring):
    """(results, arrays by quantity) of a quality job with one corpus and one protocol."""

    def run(folder="artifacts", **changes):
        session = measuring("quality", folder, **changes)
        results = measure(session)
        arrays = np.load(session.artifacts / "arrays.npz")
        return results, {key.rsplit("/", 1)[1]: arrays[key] for key in arrays}

    return run


def stream_of(session):
    return token_stream(session, "tiny-text", session.settings_as(quality.Settings))


def fetched(source, tmp_path):
    return tiny.fetch({"type": "path", "folder": str(source)}, tmp_path / "model")


# ------------------------------------------------------------------------------------------------------- perplexity


def independent_nll(model, ids, window, stride, bos=None):
    """−ln p(token | context), one forward pass a token, the context being that of the first window that reaches it."""
    if bos is not None:
        window, stride = window - 1, min(stride, window - 1)
    found = []
    for token in range(1, len(ids)):
        begin = stride * max(0, math.ceil((token - window) / stride))
        context = ([] if bos is None else [bos]) + list(ids[begin:token])
        with torch.no_grad():
            logits = model(torch.tensor([context])).logits[0, -1].double()
        found.append(torch.logsumexp(logits, 0).item() - logits[ids[token]].item())
    return np.array(found)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize(("window", "stride"), [(32, 16), (24, 24), (20, 7), (256, 256)])
def test_nll_agrees_with_an_independent_implementation(measuring, run, tiny_weights, window, stride, bos):
    from transformers import AutoModelForCausalLM

    changes = {"protocols": [{"window": window, "stride": stride}], "bos": bos, "documents": 2}
    changes["tokens_per_document"] = 35
    ids = stream_of(measuring("quality", **changes)).ids
    model = AutoModelForCausalLM.from_pretrained(tiny_weights.parent / "source", dtype=torch.float32)
    results, arrays = run(**changes)
    expected = independent_nll(model, ids.tolist(), window, stride, tiny.SHAPE["bos_token_id"] if bos else None)
    assert len(ids) == 70 and arrays["nll"].dtype == np.float32
    np.testing.assert_allclose(arrays["nll"], expected, atol=2e-4)
    entry = results["protocols"][0]
    assert entry["tokens"] == 69 and entry["mean_nll"] == pytest.approx(expected.mean(), abs=1e-5)
    assert entry["protocol"] == f"w{window}-s{stride}" + ("-bos" if bos else "")
    assert arrays["document"].tolist() == [0] * 34 + [1] * 35  # the first token is never predicted


@pytest.mark.parametrize("precision", ["fp32", "bf16", "llm-int8", "nf4"])
def test_uniform_logits_have_the_vocabulary_as_perplexity(run, tmp_path, precision):
    model = tiny.save_model(tmp_path / "source")
    torch.nn.init.zeros_(model.lm_head.weight)
    model.save_pretrained(tmp_path / "source")
    results, arrays = run(model=fetched(tmp_path / "source", tmp_path), precision=precision)
    np.testing.assert_allclose(np.exp(arrays["nll"]), tiny.VOCABULARY, rtol=1e-5)
    assert math.exp(results["protocols"][0]["mean_nll"]) == pytest.approx(tiny.VOCABULARY, rel=1e-5)


def test_log_probabilities_are_fp32_whatever_the_model_computes_in(measuring):
    session = measuring("quality", precision="bf16")
    model, _ = session.load_model()
    assert model.dtype == torch.bfloat16
    for _, log_probabilities, _ in scoring.score(session, model, stream_of(session), Protocol(32, 32), False):
        assert log_probabilities.dtype == torch.float32
        # bf16 would miss one by some 1e-2
        torch.testing.assert_close(
            log_probabilities.exp().sum(-1), torch.ones(len(log_probabilities)), atol=1e-5, rtol=0
        )
        assert torch.is_grad_enabled()  # no mode of the scoring leaks out between two windows


def test_rows_at_a_time_change_nothing(run, monkeypatch):
    _, whole = run("a")
    monkeypatch.setitem(scoring.ROWS, "cpu", 7)
    _, parts = run("b")
    np.testing.assert_array_equal(whole["nll"], parts["nll"])


def test_logits_of_one_window_exist_at_a_time(run, monkeypatch):
    """2 048 positions of a vocabulary of 128 256 are 1 GiB in fp32; the heap is given back after each window."""
    windows = []

    def logits_that_live():
        tensors = [
            one for one in gc.get_objects() if type(one) is torch.Tensor and one.shape[-1:] == (tiny.VOCABULARY,)
        ]
        windows.append([tuple(one.shape) for one in tensors if one.numel() > 4 * tiny.VOCABULARY])

    monkeypatch.setitem(scoring.ROWS, "cpu", 4)
    monkeypatch.setattr(scoring, "trim_heap", logits_that_live)
    _, arrays = run()
    assert len(windows) > 3 and not any(windows)


def test_attention_kernels_agree(run):
    found = [run(name, attention=name)[1]["nll"] for name in ("eager", "sdpa", "sdpa-math")]
    np.testing.assert_allclose(found[1], found[0], atol=1e-4)
    np.testing.assert_allclose(found[2], found[0], atol=1e-4)


def with_tokenizer(tmp_path, bos: str | None, habit: bool, **changes):
    """A fetched model whose tokenizer has a beginning-of-text token or none, and begins every text with "<s>" or not;
    ``changes`` are those of config.json."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tiny.save_model(tmp_path / "source", **changes)
    inner = AutoTokenizer.from_pretrained(tmp_path / "source").backend_tokenizer
    if habit:
        inner.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=bos, eos_token="</s>").save_pretrained(
        tmp_path / "source"
    )
    return fetched(tmp_path / "source", tmp_path)


@pytest.mark.parametrize(
    ("bos", "own", "habit", "used"),
    [
        (True, "<s>", False, "<s>"),  # config.json names </s>
        (True, None, True, "<s>"),
        (None, "<s>", True, "<s>"),  # as of LLaMA and Gemma
        (None, "<s>", False, None),  # as of GPT-2
        (None, None, False, None),
        (False, "<s>", True, None),
    ],
)
def test_windows_begin_with_the_tokenizers_token_or_as_it_begins_a_text(
    measuring, run, tmp_path, bos, own, habit, used
):
    from transformers import AutoModelForCausalLM

    model = with_tokenizer(tmp_path, own, habit, bos_token_id=1)
    changes = {"model": model, "bos": bos, "documents": 1, "tokens_per_document": 30}
    results, arrays = run(**changes)
    assert results["bos"] == {"token": used, "habit": "<s>" if habit else None}
    ids = stream_of(measuring("quality", **changes)).ids.tolist()
    weights = AutoModelForCausalLM.from_pretrained(tmp_path / "source", dtype=torch.float32)
    expected = independent_nll(weights, ids, 32, 16, 0 if used else None)
    np.testing.assert_allclose(arrays["nll"], expected, atol=2e-4)
    assert results["protocols"][0]["protocol"] == "w32-s16" + "-bos" * bool(used)


@pytest.mark.parametrize("kind", ["quality", "reference"])
def test_a_tokenizer_without_a_beginning_of_text_token_cannot_be_asked_for_one(measuring, tmp_path, monkeypatch, kind):
    session = measuring(kind, model=with_tokenizer(tmp_path, None, False), bos=True)
    monkeypatch.setattr(type(session), "load_model", lambda self: pytest.fail("the model was loaded"))
    with pytest.raises(StudyError) as error:
        measure(session)
    assert str(error.value) == (
        "quality.bos: true, but the tokenizer of model 'tiny' has no beginning-of-text token; allowed: null, false"
    )


# ------------------------------------------------------------------------------------------- distance to a reference


def stored(folder, log_probabilities: np.ndarray):
    """A reference of the corpus "text" with known log-probabilities."""
    folder.mkdir(exist_ok=True)
    (folder / "text.logprobs.f16").write_bytes(log_probabilities.astype(np.float16).tobytes())
    best = np.argwhere(log_probabilities == log_probabilities.max(1, keepdims=True))
    np.save(folder / "text.best.npy", best.astype(np.int32))
    return Reference(folder, "text", log_probabilities.shape[1], "cpu")


def test_distances_of_random_distributions(tmp_path):
    generator = torch.Generator().manual_seed(1)
    p, q = (torch.log_softmax(3 * torch.randn(40, 50, generator=generator), -1) for _ in range(2))
    reference_of_p = stored(tmp_path, p.double().numpy())
    parts = [reference_of_p.compare(0, q[:15]), reference_of_p.compare(15, q[15:])]  # read on from where it stopped
    found = {key: np.concatenate([part[key] for part in parts]) for key in ("kl", "top1")}
    p, q = p.double().numpy(), q.double().numpy()
    np.testing.assert_allclose(found["kl"], (np.exp(p) * (p - q)).sum(1), rtol=1e-3)
    np.testing.assert_array_equal(found["top1"], p.argmax(1) == q.argmax(1))


TIES = {  # logits of the reference, of the candidate, whether a first choice of both is the same
    "none": ([5, 1, 1, 0], [5, 4, 1, 0], True),
    "none, other choice": ([5, 4, 1, 0], [4, 5, 1, 0], False),
    "of the reference": ([5, 5, 1, 0], [4, 5, 1, 0], True),
    "of the reference, elsewhere": ([5, 5, 1, 0], [4, 4, 5, 0], False),
    "of the candidate": ([4, 5, 1, 0], [5, 5, 1, 0], True),
    "of the candidate, elsewhere": ([4, 4, 5, 0], [5, 5, 1, 0], False),
    "of both": ([5, 5, 1, 0], [5, 5, 1, 0], True),
    "of both, one in common": ([0, 5, 5, 1], [5, 0, 5, 1], True),
    "of both, none in common": ([5, 5, 1, 1], [1, 1, 5, 5], False),
    "of all": ([1, 1, 1, 1], [0, 0, 0, 1], True),
}


def test_a_tie_counts_as_agreement(tmp_path):
    """What is stored and what is compared are in bf16, in several reads; what ties lies at other places than row 0."""
    p, q = (torch.tensor(rows, dtype=torch.bfloat16) for rows in list(zip(*TIES.values()))[:2])
    p, q = (torch.log_softmax(logits.float() + 20, -1) for logits in (p, q))
    reference_of_p = stored(tmp_path, p.numpy())
    found = np.concatenate([reference_of_p.compare(start, q[start : start + 3])["top1"] for start in (0, 3, 6, 9)])
    assert dict(zip(TIES, found.astype(bool).tolist())) == {name: same for name, (_, _, same) in TIES.items()}


def test_all_tied_tokens_of_the_reference_are_stored(keep_reference, tmp_path, monkeypatch):
    """In the order of the text, whatever rows are scored at a time; the values are known, the model's do not count."""
    monkeypatch.setitem(scoring.ROWS, "cpu", 3)
    real, expected = scoring.score, []

    def ties(*arguments):
        for positions, log_probabilities, targets in real(*arguments):
            log_probabilities = torch.full_like(log_probabilities, -9.0)
            for row, position in enumerate(range(positions.start, positions.stop)):
                tokens = [position % 7, 10 + position, 300][: 1 + position % 3]
                log_probabilities[row, tokens] = -1.0
                expected.extend([position, token] for token in tokens)
            yield positions, log_probabilities, targets

    monkeypatch.setattr(scoring, "score", ties)
    keep_reference(kl_tokens=40)
    best = np.load(tmp_path / "reference" / "tiny-text.best.npy")
    assert best.tolist() == [pair for pair in expected if pair[0] < 40] and best.dtype == np.int32


def test_the_comparison_ends_where_the_reference_ends(tmp_path):
    p = torch.log_softmax(torch.randn(10, 20), -1)
    found = stored(tmp_path, p[:6].numpy()).compare(0, p)
    assert len(found["kl"]) == 6 and np.abs(found["kl"]).max() < 1e-5


@pytest.fixture
def keep_reference(measuring):
    return lambda **changes: measure(measuring("reference", "reference", **changes))["corpora"][0]


def test_the_reference_in_fp32_is_as_far_from_itself_as_its_storage_rounds(keep_reference, run):
    entry = keep_reference()
    assert entry["tokens"] == 64 and entry["bytes"] == 64 * tiny.VOCABULARY * 2
    assert 0 < entry["rounding_kl_mean_nats"] <= entry["rounding_kl_max_nats"] < 1e-5
    results, arrays = run()
    assert len(arrays["kl"]) == 64 < len(arrays["nll"])  # kl_tokens of all tokens
    assert np.abs(arrays["kl"]).max() <= 2 * entry["rounding_kl_max_nats"]
    entry = results["protocols"][0]
    assert entry["mean_top1"] == 1.0 and "unpaired" not in entry


@pytest.mark.parametrize("kernels", [("sdpa", "eager"), ("eager", "sdpa")])
def test_the_noise_floor_is_the_reference_with_another_attention(keep_reference, run, kernels):
    """Its distance is that of the other attention measured as a candidate; its NLL stays the configured attention's."""
    own, other = kernels
    bf16 = {"precision": "bf16", "protocols": [{"window": 32, "stride": 16}, {"window": 64, "stride": 64}]}
    rounding = keep_reference(attention=own, **bf16 | {"protocols": bf16["protocols"][:1]})["rounding_kl_max_nats"]
    results, floor = run("floor", attention=own, reference="bf16", **bf16)
    entry = results["protocols"][0]
    assert "unpaired" not in entry and floor["kl"].max() > 10 * rounding
    assert entry["mean_kl"] == pytest.approx(floor["kl"].mean()) and len(floor["kl"]) == len(floor["top1"]) == 64
    candidates = {name: run(name, attention=name, **bf16) for name in kernels}
    np.testing.assert_array_equal(floor["kl"], candidates[other][1]["kl"])
    np.testing.assert_array_equal(floor["top1"], candidates[other][1]["top1"])
    for number in range(2):  # the second protocol is scored after the floor
        losses = {name: found["protocols"][number]["mean_nll"] for name, (found, _) in candidates.items()}
        assert results["protocols"][number]["mean_nll"] == losses[own] != losses[other]


def test_a_model_whose_attention_cannot_be_changed_has_no_noise_floor_and_says_why(keep_reference, run, monkeypatch):
    from transformers import LlamaForCausalLM

    keep_reference()
    monkeypatch.setattr(LlamaForCausalLM, "_can_set_attn_implementation", lambda self: False)
    results, arrays = run()
    assert set(arrays) == {"nll", "document"} and results["protocols"][0]["status"] == "ok"
    assert results["protocols"][0]["unpaired"] == (
        "no noise floor, for which attention is computed in another way: "
        "LlamaForCausalLM does not let its attention be changed to eager"
    )


def test_coarser_weights_are_farther_from_the_reference(keep_reference, run):
    keep_reference()
    kl = {name: run(name, precision=name)[1]["kl"].mean() for name in ("fp32", "bf16", "nf4")}
    assert 10 * kl["fp32"] < kl["bf16"] and 10 * kl["bf16"] < kl["nf4"]


def test_kl_agrees_with_the_full_tables_of_both_models(keep_reference, run, measuring):
    """From stored fp16 rows against float64 from the two models directly, windows and all."""
    keep_reference(kl_tokens=1000)
    _, arrays = run(precision="bf16")
    tables = []
    for name in ("fp32", "bf16"):
        session = measuring("quality", "tables", precision=name)
        model, _ = session.load_model()
        ids = torch.from_numpy(stream_of(session).ids)
        rows = []
        for token in range(1, len(ids)):
            begin = 16 * max(0, math.ceil((token - 32) / 16))
            with torch.no_grad():
                rows.append(torch.log_softmax(model(ids[None, begin:token]).logits[0, -1].double(), -1).numpy())
        tables.append(np.array(rows))
    expected = (np.exp(tables[0]) * (tables[0] - tables[1])).sum(1)
    assert len(arrays["kl"]) == len(expected)
    assert arrays["kl"].mean() == pytest.approx(expected.mean(), rel=0.2)
    assert np.corrcoef(arrays["kl"], expected)[0, 1] > 0.9


def test_without_a_reference_quality_is_still_measured_and_says_so(run, tmp_path):
    reason = "the reference fp32 left no log-probabilities of corpus tiny-text: see its record in records/reference"
    for left in ((), ("tiny-text.logprobs.f16",)):  # what a reference leaves that failed or was killed while it wrote
        (tmp_path / "reference").mkdir(exist_ok=True)
        for name in left:
            (tmp_path / "reference" / name).write_bytes(b"half")
        results, arrays = run()
        assert set(arrays) == {"nll", "document"}
        assert results["protocols"][0]["status"] == "ok" and results["protocols"][0]["unpaired"] == reason


def test_only_the_first_protocol_is_compared(keep_reference, measuring):
    keep_reference()
    session = measuring("quality", protocols=[{"window": 32, "stride": 16}, {"window": 64, "stride": 64}])
    measure(session)
    keys = [key.split("/")[1:] for key in np.load(session.artifacts / "arrays.npz")]
    assert {protocol for protocol, quantity in keys if quantity == "kl"} == {"w32-s16"}
    assert {protocol for protocol, quantity in keys if quantity == "nll"} == {"w32-s16", "w64-s64"}


def test_too_little_disk_for_the_reference_ends_it_before_it_is_full(keep_reference, monkeypatch):
    monkeypatch.setattr(reference.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(StudyError, match="quality.kl_tokens: 64 needs .* GiB on the disk of .*reference"):
        keep_reference()


# ------------------------------------------------------------------------------------------------------------ faults


def test_a_protocol_that_fails_costs_no_other(measuring, monkeypatch):
    """NaN, which a 16-bit model can overflow to, is an error with a count, never a perplexity."""
    real = scoring.score

    def overflows(session, model, stream, protocol, bos):
        for positions, log_probabilities, targets in real(session, model, stream, protocol, bos):
            if protocol.window == 64 and positions.start == 0:
                log_probabilities[:3] = math.nan
            yield positions, log_probabilities, targets

    monkeypatch.setattr(scoring, "score", overflows)
    protocols = [{"window": window, "stride": window} for window in (32, 64, 48)]
    session = measuring("quality", protocols=protocols, documents=1, tokens_per_document=60)
    entries = measure(session)["protocols"]
    assert [entry["status"] for entry in entries] == ["ok", "overflow", "ok"]
    assert "3 of 59 tokens are not finite" in entries[1]["reason"] and "mean_nll" not in entries[1]
    assert [len(saved["protocols"]) for saved in session.saved] == [0, 1, 2, 3]
    keys = {key.split("/")[1] for key in np.load(session.artifacts / "arrays.npz")}
    assert keys == {"w32-s32", "w48-s48"}


def overflowing(tmp_path, which: str, factor: float):
    """A fetched model that is sound in fp32 and bf16; fp16 ends at 65 504."""
    model = tiny.save_model(tmp_path / "source")
    with torch.no_grad():
        model.get_parameter(f"model.layers.1.mlp.{which}.weight").mul_(factor)
    model.save_pretrained(tmp_path / "source")
    return fetched(tmp_path / "source", tmp_path)


@pytest.mark.parametrize(
    ("which", "factor", "expected"),
    [
        ("up_proj", 3e4, "not finite at layer 1 (model.layers.1.mlp.up_proj), its output in float16"),
        ("down_proj", 1e6, "not finite at layer 1 (model.layers.1.mlp.down_proj), its weights in float16"),
    ],
)
def test_what_overflows_is_named_and_is_no_result(measuring, tmp_path, which, factor, expected):
    model = overflowing(tmp_path, which, factor)
    entry = measure(measuring("quality", model=model, precision="fp16"))["protocols"][0]
    assert (entry["status"], entry["reason"]) == ("overflow", expected) and "mean_nll" not in entry
    session = measuring("generations", "texts", model=model, precision="fp16")
    with pytest.raises(FloatingPointError) as error:  # the most probable token of NaN is token 0
        measure(session)
    assert classify(error.value) == ("overflow", expected) and session.saved == []


def test_a_reference_that_overflows_costs_no_healthy_precision_its_perplexity(measuring, run, tmp_path):
    model = overflowing(tmp_path, "up_proj", 3e4)
    with pytest.raises(FloatingPointError):
        measure(measuring("reference", "reference", model=model, precision="fp16", reference="fp16"))
    results, arrays = run(model=model, precision="fp32", reference="fp16")
    (entry,) = results["protocols"]
    assert entry["status"] == "ok" and np.isfinite(arrays["nll"]).all() and set(arrays) == {"nll", "document"}
    assert entry["unpaired"] == (
        "the reference fp16 is not finite at layer 1 (model.layers.1.mlp.up_proj), its output in float16"
    )


def test_a_token_that_the_model_rules_out_is_no_overflow(keep_reference, run, tmp_path, monkeypatch):
    """Its logit is minus infinity on both sides: probability 0, which no divergence counts (0 ln 0 = 0)."""
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def ruled_out(self, *arguments, **options):
        output = forward(self, *arguments, **options)
        output.logits[..., -5:] = -math.inf
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", ruled_out)
    keep_reference()
    results, arrays = run()
    assert results["protocols"][0]["status"] == "ok" and np.abs(arrays["kl"]).max() < 1e-5


def test_an_entry_has_its_arrays_and_a_failed_write_is_an_error(measuring, monkeypatch):
    """The disk is full under the first of two protocols: no array of it comes back with the second."""
    session, write, calls = measuring("quality", protocols=[{"window": 32, "stride": 32}] * 2), np.savez_compressed, []
    session.job.settings["protocols"][1] = {"window": 64, "stride": 64}

    def full_once(path, **arrays):
        calls.append(path)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        write(path, **arrays)

    monkeypatch.setattr(np, "savez_compressed", full_once)
    entries = measure(session)["protocols"]
    assert [entry["status"] for entry in entries] == ["error", "ok"] and "tokens" not in entries[0]
    assert {key.split("/")[1] for key in np.load(session.artifacts / "arrays.npz")} == {"w64-s64"}
