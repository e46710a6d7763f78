"""Text: prompts, the token stream of a corpus, and windows over it."""

import re

import pytest
import tiny
import torch
from llmstudy.errors import StudyError
from llmstudy.measure import measure, quality, text
from llmstudy.measure.text import windows


@pytest.fixture
def tokenizer(tiny_weights):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_weights.parent / "source")


def test_every_row_of_a_batch_begins_with_another_document(measuring, tokenizer):
    ids = text.prompt_batch(measuring("probe"), 3, 20)
    assert ids.shape == (3, 20) and ids.dtype == torch.int64
    for row, document in zip(ids.tolist(), tiny.DOCUMENTS):
        assert row == tokenizer(document)["input_ids"][:20]


def test_a_short_document_goes_on_with_the_next(measuring, tokenizer, tmp_path):
    session = measuring("probe", corpus=tiny.save_corpus(tmp_path / "corpus", ["ab", "cd", "ef"]))
    ids = [tokenizer(document)["input_ids"] for document in ("ab", "cd", "ef")]
    prompts = text.prompt_batch(session, 2, sum(map(len, ids))).tolist()
    assert prompts == [ids[0] + ids[1] + ids[2], ids[1] + ids[2] + ids[0]]


def test_a_corpus_that_is_too_small_or_missing_is_one_line(measuring, tmp_path):
    corpus = tiny.save_corpus(tmp_path / "corpus", ["ab", "cd"])
    workloads = [tiny.WORKLOAD | {"batch": 3}, tiny.WORKLOAD]
    entries = measure(measuring("probe", corpus=corpus, workloads=workloads))["workloads"]
    few, short = (entry["reason"] for entry in entries)
    assert few == "corpus 'tiny-text': 2 documents for batch 3; every row needs its own"
    assert "tokens for a prompt of 9" in short
    (entry,) = measure(measuring("probe", corpus=tmp_path / "nowhere"))["workloads"]
    assert entry["status"] == "error" and "text.jsonl: missing; fetch it" in entry["reason"]


@pytest.mark.parametrize("tokens", [2, 3, 7, 32, 33, 64, 65, 100])
@pytest.mark.parametrize(("window", "stride"), [(1, 1), (2, 1), (4, 4), (7, 3), (16, 8), (32, 32), (200, 50)])
def test_windows_score_every_token_once_with_enough_context(tokens, window, stride):
    scored = []
    for found in windows(tokens, window, stride):
        assert 0 <= found.begin < found.end <= tokens - 1 and found.end - found.begin <= window
        assert 1 <= found.scored <= found.end - found.begin
        predicted = range(found.end - found.scored + 1, found.end + 1)
        for token in predicted:  # context: the tokens of the window before it
            assert token - found.begin >= min(token, window - stride + 1)
        scored += predicted
    assert scored == list(range(1, tokens))


def test_disjoint_windows_are_disjoint():
    found = [(window.begin, window.end, window.scored) for window in windows(101, 25, 25)]
    assert found == [(0, 25, 25), (25, 50, 25), (50, 75, 25), (75, 100, 25)]


@pytest.fixture
def stream(measuring):
    def stream(**changes):
        session = measuring("quality", **changes)
        return text.token_stream(session, "tiny-text", session.settings_as(quality.Settings))

    return stream


def test_a_stream_is_the_documents_cut_and_joined(stream, tokenizer):
    found = stream(documents=3, tokens_per_document=50)
    cut = [tokenizer(document)["input_ids"][:50] for document in tiny.DOCUMENTS[:3]]
    assert found.ids.tolist() == sum(cut, [])
    assert found.document.tolist() == [0] * 50 + [1] * 50 + [2] * 50
    texts = [tokenizer.decode(ids) for ids in cut]
    assert found.utf8_bytes == sum(len(part.encode()) for part in texts)
    assert found.words == sum(len(re.split(r"\s+", part)) for part in texts)


def test_without_limits_the_whole_text_is_measured(stream):
    found = stream(documents=None, tokens_per_document=None)
    assert found.utf8_bytes == sum(len(part.encode()) for part in tiny.DOCUMENTS)  # "naïve", "–" are several bytes
    assert found.words == sum(len(part.split()) for part in tiny.DOCUMENTS)
    assert found.document.max() == len(tiny.DOCUMENTS) - 1


def test_max_tokens_ends_the_stream(stream):
    found = stream(tokens_per_document=50, max_tokens=120)
    assert len(found.ids) == 120 and found.document.tolist() == [0] * 50 + [1] * 50 + [2] * 20


def test_a_document_without_tokens_does_not_end_the_text(stream, tmp_path):
    corpus = tiny.save_corpus(tmp_path / "corpus", ["first text", "", "third text"])
    assert set(stream(corpus=corpus).document.tolist()) == {0, 2}


def test_a_text_of_one_token_cannot_be_scored(stream, tmp_path):
    with pytest.raises(StudyError, match="tiny-text.*1 tokens"):
        stream(corpus=tiny.save_corpus(tmp_path / "corpus", ["a"]))
