"""Text: prompts, the token stream of a corpus, and windows over it."""

import re

import pytest
import tiny
import torch
from llmstudy.errors import StudyError
from llmstudy.measure import measure, quality, text
from llmstudy.measure.text import windows
from transformers import AutoTokenizer


@pytest.fixture
def tokenizer(tiny_weights):
    return AutoTokenizer.from_pretrained(tiny_weights.parent / "source")


def test_every_row_of_a_batch_begins_with_another_document(measuring, tokenizer):
    ids = text.prompt_batch(measuring("probe"), 3, 20)
    assert ids.shape == (3, 20) and ids.dtype == torch.int64
    for row, document in zip(ids.tolist(), tiny.DOCUMENTS):
        assert row == tokenizer(document)["input_ids"][:20]


def test_one_book_gives_prompts_from_different_places(measuring, tokenizer, tmp_path):
    book = " ".join(tiny.DOCUMENTS)
    session = measuring("probe", corpus=tiny.save_corpus(tmp_path / "corpus", [book]))
    prompts = text.prompt_batch(session, 8, 20).tolist()
    assert prompts == [tokenizer(book[len(book) * row // 8 :])["input_ids"][:20] for row in range(8)]
    assert len(set(map(tuple, prompts))) == 8


def test_calibration_is_no_text_that_quality_begins_with(measuring, tokenizer, tmp_path):
    book = " ".join(tiny.DOCUMENTS * 8)
    session = measuring("quality", corpus=tiny.save_corpus(tmp_path / "corpus", [book]))
    ids = text.calibration_ids(session).flatten().tolist()
    assert (
        len(ids) == text.CALIBRATION_ROWS * text.CALIBRATION_TOKENS and ids == tokenizer(book)["input_ids"][-len(ids) :]
    )


def test_a_short_document_goes_on_with_the_next(measuring, tokenizer, tmp_path):
    session = measuring("probe", corpus=tiny.save_corpus(tmp_path / "corpus", ["ab", "cd", "ef"]))
    ids = [tokenizer(document)["input_ids"] for document in ("ab", "cd", "ef")]
    prompts = text.prompt_batch(session, 2, sum(map(len, ids))).tolist()
    assert prompts == [ids[0] + ids[1] + ids[2], ids[1] + ids[2] + ids[0]]


def test_a_corpus_that_is_too_small_or_missing_is_one_line(measuring, tmp_path):
    corpus = tiny.save_corpus(tmp_path / "corpus", ["ab", "cd"])
    workloads = [tiny.WORKLOAD | {"batch": 3}, tiny.WORKLOAD]
    entries = measure(measuring("probe", corpus=corpus, workloads=workloads))["workloads"]
    assert all("tokens for a prompt of 9" in entry["reason"] for entry in entries)
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


class Stub:
    """A slow tokenizer: a token for each UTF-8 byte, and no offsets. ``change`` is what it does to a text first."""

    def __init__(self, change=str):
        self.change = change

    def __call__(self, text, **options):
        assert "return_offsets_mapping" not in options
        return {"input_ids": list(self.change(text).encode())}

    def decode(self, ids, **options):
        return bytes(ids).decode(errors="replace")

    def convert_ids_to_tokens(self, one):
        return f"byte {one}"


@pytest.fixture
def stream_by(measuring, tmp_path):
    """The stream of documents by a tokenizer, and the tokens of each document that are kept."""

    def stream_by(tokenizer, documents, **changes):
        session = measuring("quality", corpus=tiny.save_corpus(tmp_path / "corpus", documents), **changes)
        session.weights.__dict__["tokenizer"] = tokenizer
        return text.token_stream(session, "tiny-text", session.settings_as(quality.Settings))

    return stream_by


@pytest.mark.parametrize("ignore_merges", [False, True])
def test_bytes_of_a_byte_level_tokenizer_are_those_of_its_tokens(stream_by, ignore_merges):
    """As of Llama 3: each character of a token's name is one byte. A text is never cut inside a character."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    byte_level = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    byte_level.train_from_iterator(tiny.DOCUMENTS, trainer)
    byte_level.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level, clean_up_tokenization_spaces=True)
    document = "The naïve otter 😀 lived .\n\n  – for good , don 't\n"
    names = tokenizer.convert_ids_to_tokens(tokenizer(document)["input_ids"])
    inside = 0
    for kept in range(4, len(names) + 1):
        found = stream_by(tokenizer, [document], tokens_per_document=kept)
        number = len(found.ids)
        inside += number < kept
        data = document.encode()[: found.utf8_bytes]
        assert kept - 3 <= number <= kept and found.utf8_bytes == sum(map(len, names[:number])) == len(data)
        assert found.words == len(re.split(r"\s+", data.decode()))
    assert inside > 3 and found.utf8_bytes == len(document.encode())


def test_a_slow_tokenizer_needs_no_offsets(stream_by):
    found = stream_by(Stub(), ["naïve words here", "and more"], tokens_per_document=3)
    assert (found.ids.tolist(), found.utf8_bytes, found.words) == ([*b"na", *b"and"], 5, 2)
    assert found.uncounted == ""


def test_a_tokenizer_that_changes_the_text_counts_whole_documents_alone(stream_by):
    documents = ["Some TEXT", "More TEXT"]
    whole = stream_by(Stub(str.lower), documents, tokens_per_document=None)
    assert (whole.words, whole.utf8_bytes, whole.uncounted) == (4, 18, "")
    cut = stream_by(Stub(str.lower), documents, tokens_per_document=6)
    assert len(cut.ids) == 12 and cut.words is cut.utf8_bytes is None
    assert cut.uncounted == "words, bytes: of 2 documents that are cut, the tokens do not give back the text"


@pytest.mark.parametrize(
    ("document", "counted"),
    [
        ("人人生而自由,在尊严和权利上一律平等。 他们赋有理性和良心。", False),
        ("すべての人間は、生まれながらにして自由である。", False),
        ("มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกัน", False),
        ("😀😃 😄😁", False),
        ("모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.", True),
        ("Все люди рождаются свободными, यह भी शब्दों के बीच रिक्त स्थान रखता है, جميع الناس أحرار", True),
        ("The word 中文 is two characters in a long sentence of English words 😀.", True),
    ],
)
def test_words_are_counted_where_spaces_separate_them(stream_by, document, counted):
    found = stream_by(Stub(), [document], tokens_per_document=None)
    assert found.utf8_bytes == len(document.encode())
    assert found.words == (len(document.split()) if counted else None)
    assert found.uncounted == ("" if counted else "words: no spaces between them in this script")


def test_a_token_beyond_the_embedding_is_one_line(measuring, tmp_path, monkeypatch):
    """As a tokenizer with tokens that were added without training the model for them; before a model is loaded."""
    tiny.save_model(tmp_path / "source")
    added = AutoTokenizer.from_pretrained(tmp_path / "source")
    added.add_tokens(["<added>"])
    added.save_pretrained(tmp_path / "source")
    model = tiny.fetch({"type": "path", "folder": str(tmp_path / "source")}, tmp_path / "model")
    corpus = tiny.save_corpus(tmp_path / "corpus", ["some text <added> here"])
    expected = (
        f"model 'tiny': the text contains token {len(added) - 1} ('<added>'), but the embedding has {tiny.VOCABULARY} "
        "rows; take the tokenizer of these weights, or a text without it"
    )
    assert len(added) > tiny.VOCABULARY
    session = measuring("reference", model=model, corpus=corpus)
    monkeypatch.setattr(type(session), "load_model", lambda self: pytest.fail("the model was loaded"))
    with pytest.raises(StudyError) as error:
        measure(session)
    assert str(error.value) == expected
    monkeypatch.undo()
    with pytest.raises(StudyError) as error:
        measure(measuring("generations", model=model, prompts=["a <added> prompt"]))
    assert str(error.value) == expected
