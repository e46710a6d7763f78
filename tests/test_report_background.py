"""Background chapters and threats: they render, survive GitHub's Markdown, and cite what they define."""

import re

import pytest
from conftest import REPOSITORY
from llmstudy.report import render as report
from llmstudy.tables import every

REPORT = REPOSITORY / "workflow/report"
CHAPTERS = sorted((REPORT / "background").glob("*.md.j2"))
TEMPLATES = [*CHAPTERS, REPORT / "threats.md.j2"]
PROSE = [path for path in TEMPLATES if path.name not in ("glossary.md.j2", "references.md.j2")]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE_MATH = re.compile(r"(?<![\w$\\])\$([^$\n]+)\$(?![\w$])")
CITATION = re.compile(r"\[\[(\d+)(?:, [^\]]+)?\]\]\(#ref-(\d+)\)")
# GitHub refuses these macros, or would let one equation change another.
FORBIDDEN = {
    "operatorname",
    "def",
    "gdef",
    "let",
    "newcommand",
    "renewcommand",
    "require",
    "href",
    "style",
    "label",
    "tag",
}


def source(path):
    return path.read_text(encoding="utf-8")


def outside_fences(text):
    return FENCE.sub("", text)


def display_math(text):
    return [body for language, body in FENCE.findall(text) if language == "math"]


def render(path):
    """A template with the names of its sentences and tables in the place of what was measured."""
    subjects = {module.__name__.rpartition(".")[2]: module for module in report.SUBJECTS}
    helpers = {"measured": lambda sentence, *_: f"Measured {sentence.__name__}.", "files": lambda table: f"{table}.csv"}
    return report.environment().from_string(source(path)).render(**subjects, **helpers)


def test_all_chapters_are_there():
    names = {path.name.removesuffix(".md.j2") for path in CHAPTERS}
    assert names == {
        *("transformer", "causal", "llama", "decoding", "quantisation", "flash_attention"),
        *("glossary", "references"),
    }


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_renders_and_starts_at_level_three(path):
    text = render(path)
    assert "{{" not in outside_fences(text) and "{%" not in text
    headings = re.findall(r"^(#+) ", outside_fences(text), re.MULTILINE)
    assert headings[0] == "###" and set(headings) <= {"###", "####"}


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.name)
def test_every_prose_chapter_leads_to_measurements_that_exist(path):
    text = source(path)
    tables = re.findall(r"files\(\"(\w+)\"\)", text)
    assert (tables or "measured(" in text) and set(tables) <= set(every())


def test_no_sentence_is_said_twice():
    said = re.findall(r"measured\(([^)]+)\)", "".join(map(source, TEMPLATES)))
    assert 6 <= len(said) == len(set(said)) <= 8


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_inline_math_survives_markdown(path):
    text = outside_fences(source(path))
    assert "$$" not in text, "display math stands in ```math blocks, which Markdown leaves alone"
    for math_text in INLINE_MATH.findall(text):
        assert math_text == math_text.strip(), f"GitHub needs no space inside the dollars: {math_text}"
        assert not re.search(r"\\[^A-Za-z]", math_text), f"Markdown eats a backslash before punctuation: {math_text}"
        assert not re.search(r"[*|<>`]", math_text), f"Markdown or HTML reads this character: {math_text}"
        assert not re.search(r"(?<![A-Za-z0-9])_", math_text), f"Markdown may open emphasis here: {math_text}"
    assert "$" not in INLINE_MATH.sub("", text), "a dollar without partner"
    marked = INLINE_MATH.sub("<math>", text)
    assert len(re.findall(r"(?<![^\s(])<math>(?![^\s).,;:])", marked)) == marked.count("<math>"), "glued to a character"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_math_is_balanced_and_uses_no_forbidden_macro(path):
    text = source(path)
    for math_text in [*display_math(text), *INLINE_MATH.findall(outside_fences(text))]:
        assert not set(re.findall(r"\\([A-Za-z]+)", math_text)) & FORBIDDEN
        bare = re.sub(r"\\[{}]", "", math_text)
        assert bare.count("{") == bare.count("}")
        assert math_text.count(r"\left") - math_text.count(r"\leftarrow") == math_text.count(r"\right")
        assert math_text.count(r"\begin") == math_text.count(r"\end")
        assert "\n\n" not in math_text and "{{" not in math_text


def test_internal_links_have_targets():
    everything = "\n".join(map(source, TEMPLATES))
    titles = re.findall(r"^#+ (.+)$", everything, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    anchors |= set(re.findall(r'<a id="([\w-]+)">', everything))
    assert set(re.findall(r"\]\(#([\w-]+)\)", everything)) <= anchors


def test_references_are_numbered_in_order_and_all_used():
    everything = "\n".join(map(source, TEMPLATES))
    cited = CITATION.findall(everything)
    assert all(label == target for label, target in cited)
    assert everything.count("](#ref-") == len(cited), "a citation of another form"
    listed = re.findall(
        r'^(\d+)\. <a id="ref-(\d+)"></a>', source(REPORT / "background/references.md.j2"), re.MULTILINE
    )
    assert listed == [(str(number), str(number)) for number in range(1, len(listed) + 1)]
    assert {int(label) for label, _ in cited} == set(range(1, len(listed) + 1))
