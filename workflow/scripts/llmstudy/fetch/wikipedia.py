"""Plain prose out of a Wikipedia dump (MediaWiki XML export, bz2)."""

import bz2
import re
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
# what a removed template (a pronunciation, a conversion) leaves of the parentheses around it
EMPTY_PARENTHESES = re.compile(r"\s*\([\s,;:]*\)")
OPEN_PARENTHESIS = re.compile(r"\([\s,;:]+")
# a line that kept one of these is a link, a table or a reference the parser could not read
BROKEN_MARKUP = re.compile(r"\[\[|\{\{|\|\||!!|<ref")
SPACE_BEFORE_MARK = re.compile(r"\s+([,.;])(?=\s|$)")


def articles(path: Path) -> Iterator[dict[str, str]]:
    """Stream the articles of a dump as ``{"id", "title", "text"}``, one paragraph a line.

    Redirects, pages outside the article namespace and pages with hardly any prose are left out.

    Raises:
        StudyError: the file is not bz2, not XML, or ends early.
    """
    try:
        with bz2.open(path) as stream:
            for page in _pages(stream):
                if page.get("ns", "0") != "0" or "redirect" in page:
                    continue
                if len(text := prose(page.get("text", ""))) >= SHORTEST_ARTICLE:
                    yield {"id": page["id"], "title": page["title"], "text": text}
    except (OSError, EOFError, KeyError, ElementTree.ParseError) as error:
        raise StudyError(f"{path}: not a whole bz2 file of MediaWiki XML ({error}); delete it and run again") from error


def prose(wikitext: str) -> str:
    """The lines of prose in ``wikitext``: no templates, tables, references, media, appendices or markup."""
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
    # media also stands inside bold text or list items; a link around it takes it along
    for link in code.filter_wikilinks(recursive=code.RECURSE_OTHERS):
        if NAMESPACED.match(str(link.title)):
            code.remove(link)
    lines = map(_tidy, code.strip_code(normalize=True, collapse=True).splitlines())
    return "\n".join(line for line in lines if len(line) > SHORTEST_LINE and not BROKEN_MARKUP.search(line))


def _tidy(line: str) -> str:
    line = OPEN_PARENTHESIS.sub("(", EMPTY_PARENTHESES.sub("", line.replace("''", "")))
    return " ".join(SPACE_BEFORE_MARK.sub(r"\1", line).split())


def _pages(stream) -> Iterator[dict[str, str]]:
    """The pages as dictionaries of their own id, title, ns, text and, if there, redirect; memory stays flat."""
    events = ElementTree.iterparse(stream, events=("start", "end"))
    _, root = next(events)
    page: dict[str, str] = {}
    for event, element in events:
        name = element.tag.rpartition("}")[2]
        if event == "start":
            continue
        if name in ("id", "title", "ns", "text", "redirect"):
            # the page's own id stands before those of its revision and contributor
            page.setdefault(name, element.text or "")
        elif name == "page":
            yield page
            page = {}
            root.clear()
