"""Background chapters: short, free of studies, safe in GitHub's Markdown, cite what is listed; their Python runs."""

import contextlib
import io
import re

import pages
import pytest
import tiny
import yaml
from conftest import REPOSITORY
from llmstudy.llama import Shape
from llmstudy.report import render

REPORT = REPOSITORY / "workflow/report"
REFERENCES = REPORT / "background/references.md.j2"
CHAPTERS = sorted(set((REPORT / "background").glob("*.md.j2")) - {REFERENCES})
MATH = re.compile(r"(?<![\w$\\])\$([^$\n]+)\$(?![\w$])")
CITATION = re.compile(r"\[\[(\d+)(?:, [^\]]+)?\]\]\(#ref-(\d+)\)")
LINES, BYTES, WORDS = 330, 28_672, 30
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

every_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name.removesuffix(".md.j2"))


def source(path):
    return path.read_text(encoding="utf-8")


def code(name):
    """The only block of Python of a chapter."""
    (block,) = pages.blocks(source(REPORT / f"background/{name}.md.j2"), "python")
    return block


def sentences(text):
    """Sentences of a page without its blocks, tables and headings; a formula is one word, a citation none."""
    lines = [line for line in pages.prose(text).splitlines() if not line.startswith(("|", "#"))]
    plain = CITATION.sub("", MATH.sub("M", "\n".join(lines))).replace("*", "")
    paragraphs = re.split(r"\n\s*\n|\n(?:- |\d+\. )", plain)
    return [one for text in paragraphs for one in re.split(r"(?<=[.!?])\s+(?=[A-Z`])", " ".join(text.split()))]


def test_all_chapters_are_there_and_in_the_report():
    names = {path.name.removesuffix(".md.j2") for path in CHAPTERS}
    assert names == {"transformer", "causal", "llama", "decoding", "quantisation", "flash_attention"}


def test_together_they_are_short():
    texts = [source(path) for path in [*CHAPTERS, REFERENCES]]
    assert sum(text.count("\n") for text in texts) <= LINES
    assert sum(len(text.encode()) for text in texts) <= BYTES
    assert max(len(line) for path in CHAPTERS for line in source(path).splitlines()) <= 120


@every_chapter
def test_renders_as_it_is_and_starts_at_level_three(path):
    text = source(path)
    assert not re.search(r"\{[{%#]", text), "a chapter names no study, so it has nothing to fill in"
    assert render.environment().from_string(text).render() == text
    assert set(re.findall(r"^(#+) ", pages.prose(text), re.M)) == {"###"} and text.startswith("### ")


@every_chapter
def test_sentences_are_short(path):
    assert {one: len(one.split()) for one in sentences(source(path)) if len(one.split()) > WORDS} == {}


def test_long_sentences_are_seen():
    text = f"### {'No ' * 40}\n\n**A b [[1]](#ref-1).** C{' d' * 30}\ne [[2, §3]](#ref-2). *F* $g h$.\n- I{' j' * 20}."
    assert [len(one.split()) for one in sentences(text)] == [3, 33, 2, 21]


@every_chapter
def test_inline_math_survives_markdown(path):
    text = pages.prose(source(path))
    assert "$$" not in text, "display math stands in ```math blocks, which Markdown leaves alone"
    for formula in MATH.findall(text):
        assert formula == formula.strip(), f"GitHub needs no space inside the dollars: {formula}"
        assert not re.search(r"\\[^A-Za-z]", formula), f"Markdown eats a backslash before punctuation: {formula}"
        assert not re.search(r"[*|<>`]", formula), f"Markdown or HTML reads this character: {formula}"
        assert not re.search(r"(?<![A-Za-z0-9])_", formula), f"Markdown may open emphasis here: {formula}"
    assert "$" not in MATH.sub("", text), "a dollar without partner"
    marked = MATH.sub("<math>", text)
    assert len(re.findall(r"(?<![^\s(])<math>(?![^\s).,;:])", marked)) == marked.count("<math>"), "glued to a character"


@every_chapter
def test_math_is_balanced_and_uses_no_forbidden_macro(path):
    text = source(path)
    for formula in [*pages.blocks(text, "math"), *MATH.findall(pages.prose(text))]:
        assert not set(re.findall(r"\\([A-Za-z]+)", formula)) & FORBIDDEN
        bare = re.sub(r"\\[{}]", "", formula)
        assert bare.count("{") == bare.count("}")
        assert formula.count(r"\left") - formula.count(r"\leftarrow") == formula.count(r"\right")
        assert formula.count(r"\begin") == formula.count(r"\end")
        assert "\n\n" not in formula


def test_internal_links_have_targets():
    everything = "\n".join(source(path) for path in [*CHAPTERS, REFERENCES])
    assert set(re.findall(r"\]\(#([\w-]+)\)", everything)) <= pages.anchors(everything)


def test_references_are_those_that_some_template_cites():
    everything = "\n".join(source(path) for path in [*REPORT.glob("*.md.j2"), *CHAPTERS])
    cited = CITATION.findall(everything)
    assert all(label == target for label, target in cited)
    assert everything.count("](#ref-") == len(cited), "a citation of another form"
    items = [line for line in source(REFERENCES).splitlines() if line.startswith("- ")]
    listed = [re.match(r'- <a id="ref-(\d+)"></a>\[(\d+)\] ', line).groups() for line in items]
    numbers = [int(anchor) for anchor, label in listed if anchor == label]
    assert len(numbers) == len(items) and numbers == sorted(set(numbers))
    assert {int(label) for label, _ in cited} == set(numbers)


# ------------------------------------------------------------------------------------------------ Try it


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny.save_model(folder)
    return folder


def run(block, model_dir):
    """What a block prints."""
    if "load_in_8bit" in block:
        pytest.importorskip("bitsandbytes")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(block, {"model_dir": str(model_dir)})
    return out.getvalue()


@every_chapter
def test_each_chapter_ends_with_code_of_a_few_lines(path):
    text = source(path)
    assert text.rstrip().endswith("```") and "\n**Try it.** " in text
    lines = [line for line in pages.blocks(text, "python")[0].splitlines() if not re.match(r"from |import ", line)]
    assert 3 <= len(lines) <= 9


def test_linear_layers_are_counted(model_dir):
    shape = Shape.of(tiny.SHAPE)
    linear = shape.matmul_weights - shape.vocabulary * shape.hidden
    assert run(code("transformer"), model_dir).startswith(f"{linear / shape.parameters:.1%} of {shape.parameters:,} ")


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("causal", ("model(ids[:, :-1])", "model(ids[:, 1:])")),  # another beginning, and another cache
        ("llama", ("3 * d *", "2 * d *")),
        ("flash_attention", ("keep * a", "a")),
    ],
)
def test_what_a_block_claims_holds_and_can_fail(name, wrong, model_dir):
    answers = run(code(name), model_dir).split()
    assert answers and set(answers) == {"True"}
    assert wrong[0] in code(name)
    assert set(run(code(name).replace(*wrong), model_dir).split()) == {"False"}


def test_greedy_text_keeps_within_half_of_its_nearest_tie(model_dir):
    """The block's numbers again, each step from the whole text; then with errors just below and above them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    printed = run(code("decoding"), model_dir)
    model, tokenizer = (each.from_pretrained(model_dir) for each in (AutoModelForCausalLM, AutoTokenizer))
    ids, steps = tokenizer("The river flows to the sea", return_tensors="pt").input_ids, []
    with torch.no_grad():
        while len(steps) < 20 and int(ids[0, -1]) != model.config.eos_token_id:
            steps.append(model(ids).logits[0, -1])
            ids = torch.cat([ids, steps[-1].argmax().reshape(1, 1)], dim=1)
    bound = min(float(step.topk(2).values.diff().abs()) for step in steps) / 2
    assert printed.startswith(tokenizer.decode(ids[0])) and f"below {bound:.4f} leave" in printed
    for factor, changes in ((0.99, False), (1.01, True)):
        worst = []
        for step in steps:
            error = torch.full_like(step, factor * bound)
            error[step.argmax()] *= -1
            worst.append(bool((step + error).argmax() != step.argmax()))
        assert any(worst) == changes


def test_absmax_by_hand_and_the_library(model_dir):
    from safetensors.numpy import load_file

    codes, second = run(code("quantisation"), model_dir).split("\n", 1)
    row = load_file(model_dir / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"][0].astype(float)
    assert codes.startswith(str([float(round(value / max(abs(row)) * 127)) for value in row[:8]]))
    assert 0.3 < float(re.search(r"largest error: ([\d.]+) of a step", codes)[1]) <= 0.5
    assert second.startswith("torch.int8 The river flows to the sea")


def test_the_folder_that_is_named_is_what_the_default_study_fetches():
    (model,) = yaml.safe_load(source(REPOSITORY / "config/config.yaml"))["models"]
    assert f"`resources/models/{model['name']}`" in source(REPORT / "background/transformer.md.j2")


@pytest.mark.slow
@pytest.mark.parametrize("name", [path.name.removesuffix(".md.j2") for path in CHAPTERS])
def test_blocks_run_on_the_real_model(name):
    folder = REPOSITORY / "resources/models/smollm2-135m"
    if not (folder / "model.safetensors").exists():
        pytest.skip("needs the model that the default study fetches")
    printed = run(code(name), folder)
    assert printed and "False" not in printed
