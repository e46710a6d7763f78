"""Markdown pages taken apart."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
ROOT_PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "config/README.md",
    "results/README.md",
    "tests/README.md",
    "workflow/README.md",
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def all_pages() -> list[str]:
    """The documentation, relative to the repository; what the workflow makes (REPORT.md, details) has other tests."""
    others = [*(REPOSITORY / "docs").glob("*.md"), *(REPOSITORY / "workflow" / "scripts").rglob("*.md")]
    return ROOT_PAGES + sorted(str(path.relative_to(REPOSITORY)) for path in others)


def read(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [content for name, content in FENCE.findall(text) if name == language]


def prose(text: str) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", text)


def section(text: str, title: str) -> str:
    """What follows a heading of the second level."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found, f"no section {title!r}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """Cells of all table rows without heads, stripped."""
    found, head = [], True
    for line in text.splitlines():
        if not line.startswith("|"):
            head = True
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if set("".join(cells)) <= set("-: "):
            head = False
        elif not head:
            found.append(cells)
    return found


def tables(text: str) -> list[list[list[str]]]:
    """Every Markdown table as its lines of cells, the header first."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", text + "\n", re.M)
    lines = ([re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()] for block in blocks)
    return [[[cell.strip() for cell in line] for line in [header, *rows]] for header, _, *rows in lines]


def table_with(title: str, text: str) -> list[dict[str, str]]:
    """Rows of the first table that has a column of this title, as dictionaries by title."""
    header, *rows = next(table for table in tables(text) if title in table[0])
    return [dict(zip(header, row, strict=True)) for row in rows]


def code_spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(text))


def anchors(text: str) -> set[str]:
    """Anchors that GitHub gives the headings of a page, and those set by hand."""
    titles = re.findall(r"^#+ (.*)$", prose(text), re.M)
    slugs = {re.sub(r"[^\w\- ]", "", title.replace("`", "").lower()).strip().replace(" ", "-") for title in titles}
    return slugs | set(re.findall(r'<a (?:id|name)="([^"]+)"', text))
