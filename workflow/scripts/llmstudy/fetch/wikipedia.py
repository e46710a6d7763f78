"""Plain prose of a Wikipedia dump (MediaWiki XML export, bz2)."""

import bz2
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from llmstudy.errors import StudyError

# captions, list items and headings are shorter than a line of prose, disambiguation pages shorter than an article
SHORTEST_LINE = 80
SHORTEST_ARTICLE = 800
APPENDICES = {"see also", "notes", "references", "notes and references", "footnotes", "citations", "bibliography",
              "sources", "works cited", "further reading", "external links"}  # fmt: skip
# [[File:…]], [[Category:…]], [[fr:…]]: a namespace or a language before the colon
NAMESPACED = re.compile(
    r":?\s*(file|image|category|media|wikipedia|template|portal|help|[a-z]{2,3}(-[a-z]+)*)\s*:", re.I
)
# removed before parsing: a reference with broken markup inside would otherwise be taken for text
REFERENCE = re.compile(r"<ref\b(?:[^>]*/>|.*?</ref\s*>)", re.I | re.S)
# what is left of the parentheses around a removed template (a pronunciation, a conversion)
EMPTY_PARENTHESES = re.compile(r"\s*\([\s,;:]*\)")
OPEN_PARENTHESIS = re.compile(r"\([\s,;:]+")
# a line that kept one of these is a link, a table or a reference the parser could not read
BROKEN_MARKUP = re.compile(r"\[\[|\{\{|\|\||!!|<ref")
SPACE_BEFORE_MARK = re.compile(r"\s+([,.;])(?=\s|$)")


def articles(path: Path, skipped: Counter[str]) -> Iterator[dict[str, str]]:
    """Yield the articles of a dump as ``{"id", "title", "text"}``, one paragraph a line; count in ``skipped`` the pages
    that are none and those with hardly any prose. Raise StudyError for a damaged file."""
    try:
        with bz2.open(path) as stream:
            for page in _pages(stream):
                if page.get("ns", "0") != "0" or "redirect" in page:
                    skipped["no article"] += 1
                elif len(text := prose(page.get("text", ""))) < SHORTEST_ARTICLE:
                    skipped[f"under {SHORTEST_ARTICLE} characters of prose"] += 1
                else:
                    yield {"id": page["id"], "title": page["title"], "text": text}
    except (OSError, EOFError, KeyError, ElementTree.ParseError) as error:
        raise StudyError(f"{path}: not a whole bz2 file of MediaWiki XML ({error}); delete it and run again") from error


def prose(wikitext: str) -> str:
    """Return the lines of prose in ``wikitext``: no templates, tables, references, media, appendices or markup."""
    import mwparserfromhell
    from mwparserfromhell.nodes import Heading, Tag

    code = mwparserfromhell.parse(REFERENCE.sub("", wikitext))
    kept, appendix_level = [], None
    for node in code.nodes:
        if isinstance(node, Heading) and (appendix_level is None or node.level <= appendix_level):
            appendix_level = node.level if str(node.title).strip().lower() in APPENDICES else None
        dropped = appendix_level is not None or (isinstance(node, Tag) and str(node.tag) == "table")
        if not dropped:
            kept.append(node)
    code.nodes = kept
    # media is also inside bold text and list items; a link around it is removed with it
    for link in code.filter_wikilinks(recursive=code.RECURSE_OTHERS):
        if NAMESPACED.match(str(link.title)):
            code.remove(link)
    lines = map(_tidy, code.strip_code(normalize=True, collapse=True).splitlines())
    return "\n".join(line for line in lines if len(line) > SHORTEST_LINE and not BROKEN_MARKUP.search(line))


def _tidy(line: str) -> str:
    line = OPEN_PARENTHESIS.sub("(", EMPTY_PARENTHESES.sub("", line.replace("''", "")))
    return " ".join(SPACE_BEFORE_MARK.sub(r"\1", line).split())


def _pages(stream) -> Iterator[dict[str, str]]:
    """Yield the pages as dictionaries of id, title, ns, text and, if there, redirect; memory stays flat."""
    events = ElementTree.iterparse(stream, events=("start", "end"))
    _, root = next(events)
    page: dict[str, str] = {}
    for event, element in events:
        name = element.tag.rpartition("}")[2]
        if event == "start":
            continue
        if name in ("id", "title", "ns", "text", "redirect"):
            # the id of the page comes before those of its revision and contributor
            page.setdefault(name, element.text or "")
        elif name == "page":
            yield page
            page = {}
            root.clear()
