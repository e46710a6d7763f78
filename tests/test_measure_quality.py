"""Quality: against an independent perplexity, closed forms, known distributions, and the reference against itself."""

import math
import re

import numpy as np
import pytest
import tiny
import torch
from llmstudy.errors import StudyError
from llmstudy.measure import measure, quality, reference, scoring
from llmstudy.measure.quality import Reference
from llmstudy.measure.stream import TokenStream, protocol_name, token_stream, windows


@pytest.fixture
def job(tiny_weights, tiny_corpus, tmp_path):
    """A job on the tiny model whose reference lies in tmp_path/reference."""

    def job(kind="quality", **changes):
        changes.setdefault("reference_folder", str(tmp_path / "reference"))
        return tiny.job(kind, changes.pop("model", tiny_weights), changes.pop("corpus", tiny_corpus), **changes)

    return job


def run(told, folder):
    """(samples, arrays by quantity) of a quality job with one corpus and one protocol."""
    samples = measure(tiny.session(told, folder))
    arrays = np.load(folder / "arrays.npz")
    return samples, {key.rsplit("/", 1)[1]: arrays[key] for key in arrays}


# ---------------------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize("tokens", [2, 3, 7, 32, 33, 64, 65, 100])
@pytest.mark.parametrize(("window", "stride"), [(1, 1), (2, 1), (4, 4), (7, 3), (16, 8), (32, 32), (200, 50)])
def test_windows_score_every_token_once_with_enough_context(tokens, window, stride):
    scored = []
    for one in windows(tokens, window, stride):
        assert 0 <= one.begin < one.end <= tokens - 1 and one.end - one.begin <= window
        assert 1 <= one.scored <= one.end - one.begin
        predicted = range(one.end - one.scored + 1, one.end + 1)
        for token in predicted:  # context: the tokens of the window before it
            assert token - one.begin >= min(token, window - stride + 1)
        scored += predicted
    assert scored == list(range(1, tokens))


def test_disjoint_windows_are_disjoint():
    found = list(windows(101, 25, 25))
    assert [(one.begin, one.end, one.scored) for one in found] == [
        (0, 25, 25),
        (25, 50, 25),
        (50, 75, 25),
        (75, 100, 25),
    ]


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
def test_nll_agrees_with_an_independent_implementation(job, tmp_path, tiny_weights, window, stride, bos):
    from transformers import AutoModelForCausalLM

    told = job(protocols=[{"window": window, "stride": stride}], bos=bos, documents=2, tokens_per_document=35)
    session = tiny.session(told, tmp_path / "artifacts")
    ids = token_stream(session, "tiny-text").ids
    model = AutoModelForCausalLM.from_pretrained(tiny_weights.parent / "source", dtype=torch.float32)
    samples, arrays = run(told, tmp_path / "artifacts")
    expected = independent_nll(model, ids.tolist(), window, stride, tiny.SHAPE["bos_token_id"] if bos else None)
    assert len(ids) == 70 and arrays["nll"].dtype == np.float32
    np.testing.assert_allclose(arrays["nll"], expected, atol=2e-4)
    entry = samples["protocols"][0]
    assert entry["tokens"] == 69 and entry["mean_nll"] == pytest.approx(expected.mean(), abs=1e-5)
    assert entry["protocol"] == f"w{window}-s{stride}" + ("-bos" if bos else "")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "llm-int8", "nf4"])
def test_uniform_logits_have_the_vocabulary_as_perplexity(tmp_path, tiny_corpus, job, precision):
    model = tiny.save_model(tmp_path / "source")
    torch.nn.init.zeros_(model.lm_head.weight)
    model.save_pretrained(tmp_path / "source")
    weights = tiny.fetch({"type": "path", "folder": str(tmp_path / "source")}, tmp_path / "model")
    samples, arrays = run(job(model=weights, precision=precision), tmp_path / "artifacts")
    np.testing.assert_allclose(np.exp(arrays["nll"]), tiny.VOCABULARY, rtol=1e-5)
    assert math.exp(samples["protocols"][0]["mean_nll"]) == pytest.approx(tiny.VOCABULARY, rel=1e-5)


def test_log_probabilities_are_fp32_whatever_the_model_computes_in(job, tmp_path):
    session = tiny.session(job(precision="bf16"), tmp_path)
    model, _ = session.load_model()
    assert model.dtype == torch.bfloat16
    stream = token_stream(session, "tiny-text")
    for _, log_probabilities, _ in scoring.score(session, model, stream, {"window": 32, "stride": 32}, False):
        assert log_probabilities.dtype == torch.float32
        # bf16 would miss one by some 1e-2
        torch.testing.assert_close(
            log_probabilities.exp().sum(-1), torch.ones(len(log_probabilities)), atol=1e-5, rtol=0
        )
        assert torch.is_grad_enabled()  # no mode of the scoring leaks out between two windows


def test_rows_at_a_time_change_nothing(job, tmp_path, monkeypatch):
    _, whole = run(job(), tmp_path / "a")
    monkeypatch.setitem(scoring.ROWS, "cpu", 7)
    _, parts = run(job(), tmp_path / "b")
    np.testing.assert_array_equal(whole["nll"], parts["nll"])


def test_attention_kernels_agree(job, tmp_path):
    found = [run(job(attention=name), tmp_path / name)[1]["nll"] for name in ("eager", "sdpa", "sdpa-math")]
    np.testing.assert_allclose(found[1], found[0], atol=1e-4)
    np.testing.assert_allclose(found[2], found[0], atol=1e-4)


# ------------------------------------------------------------------------------------------------------ token stream


def stream_of(told, tmp_path):
    return token_stream(tiny.session(told, tmp_path / "artifacts"), "tiny-text")


def test_a_stream_is_the_documents_cut_and_joined(job, tmp_path, tiny_weights):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_weights.parent / "source")
    stream = stream_of(job(documents=3, tokens_per_document=50), tmp_path)
    cut = [tokenizer(text)["input_ids"][:50] for text in tiny.DOCUMENTS[:3]]
    assert stream.ids.tolist() == sum(cut, [])
    assert stream.document.tolist() == [0] * 50 + [1] * 50 + [2] * 50
    texts = [tokenizer.decode(ids) for ids in cut]
    assert stream.utf8_bytes == sum(len(text.encode()) for text in texts)
    assert stream.words == sum(len(re.split(r"\s+", text)) for text in texts)


def test_without_limits_the_whole_text_is_measured(job, tmp_path):
    stream = stream_of(job(documents=None, tokens_per_document=None), tmp_path)
    assert stream.utf8_bytes == sum(len(text.encode()) for text in tiny.DOCUMENTS)  # "naïve", "–" are several bytes
    assert stream.words == sum(len(text.split()) for text in tiny.DOCUMENTS)
    assert stream.document.max() == len(tiny.DOCUMENTS) - 1


def test_max_tokens_ends_the_stream(job, tmp_path):
    stream = stream_of(job(tokens_per_document=50, max_tokens=120), tmp_path)
    assert len(stream.ids) == 120 and stream.document.tolist() == [0] * 50 + [1] * 50 + [2] * 20


def test_a_document_without_tokens_does_not_end_the_text(job, tmp_path):
    corpus = tiny.save_corpus(tmp_path / "corpus", ["first text", "", "third text"])
    stream = stream_of(job(corpus=corpus), tmp_path)
    assert set(stream.document.tolist()) == {0, 2}


def test_a_text_of_one_token_cannot_be_scored(job, tmp_path):
    corpus = tiny.save_corpus(tmp_path / "corpus", ["a"])
    with pytest.raises(StudyError, match="tiny-text.*1 tokens"):
        stream_of(job(corpus=corpus), tmp_path)


def test_protocol_names():
    assert protocol_name({"window": 1024, "stride": 512}, False) == "w1024-s512"
    assert protocol_name({"window": 2048, "stride": 2048}, True) == "w2048-s2048-bos"


# ------------------------------------------------------------------------------------------- distance to a reference


def stored(folder, log_probabilities: np.ndarray, corpus="text"):
    """Write a reference as the reference job leaves it."""
    folder.mkdir(exist_ok=True)
    reference.logprobs_file(folder, corpus).write_bytes(log_probabilities.astype(np.float16).tobytes())
    order = np.argsort(-log_probabilities, axis=1, kind="stable")[:, :5].astype(np.int32)
    np.save(reference.top5_file(folder, corpus), order)
    return Reference(folder, corpus, log_probabilities.shape[1], "cpu")


def test_kl_of_a_known_pair(tmp_path):
    """p uniform over 8 and q = 2⁻¹ … 2⁻⁷, 2⁻⁷: KL(p‖q) = ln 2 / 8 · Σ (kᵢ − 3) = 11/8 · ln 2."""
    powers = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 7])
    found = stored(tmp_path, np.log(np.full((1, 8), 1 / 8))).compare(0, (-powers * math.log(2))[None])
    assert found["kl"] == pytest.approx([11 / 8 * math.log(2)], abs=1e-6)


def test_distances_of_random_distributions(tmp_path):
    generator = torch.Generator().manual_seed(1)
    p, q = (torch.log_softmax(3 * torch.randn(40, 50, generator=generator), -1) for _ in range(2))
    reference_of_p = stored(tmp_path, p.double().numpy())
    parts = [reference_of_p.compare(0, q[:15]), reference_of_p.compare(15, q[15:])]  # read on from where it stopped
    found = {key: np.concatenate([part[key] for part in parts]) for key in ("kl", "top1", "top5")}
    p, q = p.double().numpy(), q.double().numpy()
    np.testing.assert_allclose(found["kl"], (np.exp(p) * (p - q)).sum(1), rtol=1e-3)
    np.testing.assert_array_equal(found["top1"], p.argmax(1) == q.argmax(1))
    best = [np.argsort(-table, axis=1)[:, :5] for table in (p, q)]
    overlap = [len(set(a) & set(b)) / 5 for a, b in zip(*best)]
    np.testing.assert_allclose(found["top5"], overlap, rtol=1e-6)
    assert 0 < found["top5"].mean() < 1  # the case tells something


def test_the_comparison_ends_where_the_reference_ends(tmp_path):
    p = torch.log_softmax(torch.randn(10, 20), -1)
    found = stored(tmp_path, p[:6].numpy()).compare(0, p)
    assert len(found["kl"]) == 6 and np.abs(found["kl"]).max() < 1e-5


def kept_reference(job, tmp_path, **changes):
    return measure(tiny.session(job("reference", **changes), tmp_path / "reference"))["corpora"][0]


def test_the_reference_against_itself_is_the_noise_floor(job, tmp_path):
    entry = kept_reference(job, tmp_path)
    assert entry["tokens"] == 64 and entry["bytes"] == 64 * tiny.VOCABULARY * 2
    assert 0 < entry["rounding_kl_mean_nats"] <= entry["rounding_kl_max_nats"] < 1e-5
    samples, arrays = run(job(), tmp_path / "artifacts")
    assert len(arrays["kl"]) == 64 < len(arrays["nll"])  # kl_tokens of all tokens
    assert np.abs(arrays["kl"]).max() <= 2 * entry["rounding_kl_max_nats"]
    assert samples["protocols"][0]["mean_top1"] == samples["protocols"][0]["mean_top5"] == 1.0


def test_coarser_weights_are_farther_from_the_reference(job, tmp_path):
    kept_reference(job, tmp_path)
    kl = {name: run(job(precision=name), tmp_path / name)[1]["kl"].mean() for name in ("fp32", "bf16", "nf4")}
    assert 10 * kl["fp32"] < kl["bf16"] and 10 * kl["bf16"] < kl["nf4"]


def test_kl_agrees_with_the_full_tables_of_both_models(job, tmp_path, tiny_weights):
    """From stored fp16 rows against float64 from the two models directly, windows and all."""
    kept_reference(job, tmp_path, kl_tokens=1000)
    told = job(precision="bf16")
    _, arrays = run(told, tmp_path / "artifacts")
    tables = []
    for name in ("fp32", "bf16"):
        session = tiny.session(job(precision=name), tmp_path / "tables")
        model, _ = session.load_model()
        ids = torch.from_numpy(token_stream(session, "tiny-text").ids)
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


def test_without_a_reference_quality_is_still_measured(job, tmp_path, capsys):
    _, arrays = run(job(), tmp_path / "artifacts")
    assert set(arrays) == {"nll", "document"}
    (tmp_path / "reference").mkdir()
    reference.top5_file(tmp_path / "reference", "tiny-text").touch()  # what a failed reference job leaves
    assert "kl" not in run(job(), tmp_path / "again")[1]
    assert "left no log-probabilities" in capsys.readouterr().out


def test_only_the_first_protocol_is_compared(job, tmp_path):
    kept_reference(job, tmp_path)
    measure(tiny.session(job(protocols=[{"window": 32, "stride": 16}, {"window": 64, "stride": 64}]), tmp_path / "a"))
    keys = set(np.load(tmp_path / "a" / "arrays.npz"))
    assert {key.split("/")[1] for key in keys if key.endswith("/kl")} == {"w32-s16"}
    assert {key.split("/")[1] for key in keys if key.endswith("/nll")} == {"w32-s16", "w64-s64"}


def test_too_little_disk_for_the_reference_is_told_before_it_is_full(job, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(reference.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(StudyError, match="quality.kl_tokens 64: needs .* GiB"):
        kept_reference(job, tmp_path)


# ------------------------------------------------------------------------------------------------------------ faults


def test_a_protocol_that_fails_costs_no_other(job, tmp_path, monkeypatch):
    """NaN, which a 16-bit model can overflow to, is an error with a count, never a perplexity."""
    real = quality.score

    def overflows(session, model, stream, protocol, bos):
        for positions, log_probabilities, targets in real(session, model, stream, protocol, bos):
            if protocol["window"] == 64 and positions.start == 0:
                log_probabilities[:3] = math.nan
            yield positions, log_probabilities, targets

    monkeypatch.setattr(quality, "score", overflows)
    protocols = [{"window": window, "stride": window} for window in (32, 64, 48)]
    saved = []
    session = tiny.session(job(protocols=protocols, documents=1, tokens_per_document=60), tmp_path / "a")
    session.save = lambda samples: saved.append(len(samples["protocols"]))
    entries = measure(session)["protocols"]
    assert [entry["status"] for entry in entries] == ["ok", "error", "ok"]
    assert "3 of 59 tokens are not finite" in entries[1]["reason"] and "mean_nll" not in entries[1]
    assert saved == [1, 2, 3]
    keys = {key.split("/")[1] for key in np.load(tmp_path / "a" / "arrays.npz")}
    assert keys == {"w32-s32", "w48-s48"}


def test_an_overflow_of_fp16_weights_is_an_error(job, tmp_path):
    model = tiny.save_model(tmp_path / "source")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1e6)
    model.save_pretrained(tmp_path / "source")
    weights = tiny.fetch({"type": "path", "folder": str(tmp_path / "source")}, tmp_path / "model")
    entry = measure(tiny.session(job(model=weights, precision="fp16"), tmp_path / "a"))["protocols"][0]
    assert entry["status"] == "error" and "not finite" in entry["reason"]


def test_arrays_are_replaced_in_one_step(tmp_path, monkeypatch):
    quality.replace_arrays(tmp_path / "arrays.npz", {"a": np.arange(3)})

    def full(path, **arrays):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError):
        quality.replace_arrays(tmp_path / "arrays.npz", {"a": np.arange(9)})
    assert np.load(tmp_path / "arrays.npz")["a"].tolist() == [0, 1, 2]


def test_every_array_has_the_documents_of_its_tokens(job, tmp_path):
    _, arrays = run(job(documents=2, tokens_per_document=30), tmp_path / "a")
    assert arrays["document"].tolist() == [0] * 29 + [1] * 30  # the first token is never predicted
    assert isinstance(stream_of(job(), tmp_path), TokenStream)
