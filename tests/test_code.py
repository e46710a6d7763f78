"""The digest of the code that a step runs through: what it follows, what counts, and what does not."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from llmstudy import code, kinds, runtimes
from llmstudy import config as study_config
from llmstudy.models import attention, precisions
from llmstudy.report import figures
from llmstudy.runner.job import Identity
from llmstudy.tables import every

ONE = Identity("tiny", "probe", "tiny", "bf16", "sdpa", "generate")
STUDY = study_config.complete(
    {
        "study": "tiny",
        "models": [{"name": "tiny", "source": {"type": "synthetic", "shape": "llama-2-7b"}}],
        "corpora": [{"name": "text", "source": {"type": "path", "file": "text.txt", "format": "txt"}}],
        "precisions": ["bf16"],
        "reference": "bf16",
    }
)
STEPS = (
    {kind: kinds.modules(STUDY, replace(ONE, kind=kind)) for kind in kinds.KINDS}
    | {name: [name] for name in ("fetch.models", "fetch.corpora", "fetch.tasks", "tables.provenance", "report.render")}
    | {f"{name}.csv": ["tables", table.module] for name, table in every().items()}
    | {f"{name}.svg": [figure.module] for name, figure in figures.FIGURES.items()}
)
KINDS = set(kinds.KINDS)
TABLES = {step for step in STEPS if step.endswith(".csv")}


FIRST = KINDS | {"fetch.models", "fetch.corpora", "fetch.tasks"}  # what a change there costs most


def listed(*modules: str) -> set[str]:
    """Files of the library that a digest of the modules is of."""
    return {str(path.relative_to(code.ROOT)) for path in code.files(*modules)}


FILES = {step: listed(*modules) for step, modules in STEPS.items()}

# ------------------------------------------------------------------------------------------------- what it follows

# What a measuring process and each module that is imported by name load; a small copy measures the bandwidth.
LOADED = """
import importlib, json, sys
from llmstudy.measure import device
device.COPY_BYTES["cpu"] = 2**16
from llmstudy.runner import child
show = lambda: print(json.dumps([m.__file__ for n, m in sys.modules.items() if n.split(".")[0] == "llmstudy"]))
child.main(*sys.argv[1:4])
show()
for name in sys.argv[4:]:
    importlib.import_module(f"llmstudy.{name}")
show()
"""


@pytest.mark.slow
def test_everything_that_python_loads_is_followed(tiny_weights, tiny_corpus, tmp_path):
    """First by a job from beginning to end, then by every module that a name in a config or a registry leads to."""
    job = tiny.job("probe", tiny_weights, tiny_corpus, precision="llm-int8")
    (tmp_path / "job.json").write_text(json.dumps(job.to_dict()))
    named = {module for modules in STEPS.values() for module in modules} | {"runner.script"}
    named |= {precisions.module_of(name) for name in precisions.names()} | set(
        map(runtimes.module_of, runtimes.MODULES)
    )
    run = subprocess.run(
        [sys.executable, "-c", LOADED, *(str(tmp_path / part) for part in ("job.json", "result.json", ".")), *named],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(code.ROOT.parent)},
    )
    assert run.returncode == 0, run.stderr
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "ok", run.stderr
    by_the_job, by_all = (
        {str(Path(path).relative_to(code.ROOT)) for path in json.loads(line)} for line in run.stdout.splitlines()[-2:]
    )
    assert by_the_job - listed(*kinds.modules(STUDY, replace(ONE, precision="llm-int8"))) == set()
    assert by_all - listed(*named) == set()
    assert {"models/precisions/llm_int8.py", "runtimes/generate.py", "measure/__init__.py"} <= by_the_job


@pytest.mark.parametrize(
    ("module", "concerned"),
    [
        ("models/precisions/four_bit.py", set()),  # the jobs here are in bf16
        ("runtimes/graph/__init__.py", set()),
        ("runtimes/generate.py", KINDS),
        ("runner/child.py", KINDS),
        # What lies in the __init__ of a package is code like any other.
        ("measure/__init__.py", KINDS),
        ("models/precisions/__init__.py", KINDS),
        ("tables/__init__.py", TABLES | {"report.render"}),
        # A source concerns no measurement and no other source, or a change would measure every model again.
        ("fetch/wikipedia.py", {"fetch.corpora"}),
        ("fetch/pypi.py", {"fetch.models", "fetch.corpora"}),
        ("fetch/hub.py", {"fetch.models", "fetch.corpora", "fetch.tasks", "tasks"}),
        ("measure/generations.py", {"generations"}),
        ("measure/scoring.py", {"quality", "reference", "sensitivity", "outliers", "generations", "tasks"}),
        ("measure/probe.py", {"probe", "capacity"}),
        ("measure/calls.py", {"probe", "panel", "profile", "capacity"}),
        ("tables/probes.py", {"probes.csv"}),
        ("report/render.py", {"report.render"}),
        ("kinds.py", set()),
        ("config.py", set()),
        ("cli.py", set()),
    ],
)
def test_a_file_concerns_the_steps_that_run_through_it(module, concerned):
    found = {step for step, files in FILES.items() if module in files}
    assert concerned <= found and found & FIRST == concerned & FIRST


def test_a_cycle_of_imports_ends(library):
    (library / "a.py").write_text("from llmstudy import b\n")
    (library / "b.py").write_text("import llmstudy.a\nfrom llmstudy.b import something\n")
    assert listed("a") == {"__init__.py", "a.py", "b.py"}
    with pytest.raises(FileNotFoundError):
        code.files("measure.nothing")


# ---------------------------------------------------------------------------------------------------- what counts


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A copy of the library that the digests are taken of."""
    folder = tmp_path / "llmstudy"
    shutil.copytree(code.ROOT, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code, "ROOT", folder)
    forget()
    yield folder
    forget()


def forget() -> None:
    for function in (code.digest, code._tree, code._imported, code._of_file):
        function.cache_clear()


def digests() -> dict[str, str]:
    forget()
    return {step: code.digest(*modules) for step, modules in STEPS.items()}


def test_comments_docstrings_and_line_breaks_count_nowhere(library):
    before = digests()
    tiny.change_comments(library)
    assert digests() == before


def test_an_operator_counts_in_every_step_that_runs_through_it(library):
    before, path = digests(), library / "measure/__init__.py"
    assert " > context" in path.read_text()
    path.write_text(path.read_text().replace(" > context", " >= context"))
    assert {step for step, digest in digests().items() if digest != before[step]} == KINDS


@pytest.mark.parametrize(
    ("registry", "name"),
    [
        ("models/precisions/__init__.py", "MODULES"),
        ("models/attention.py", "CHOICES"),
        ("runtimes/__init__.py", "MODULES"),
    ],
)
def test_a_new_name_in_a_registry_counts_nowhere(library, registry, name):
    before, path = digests(), library / registry
    assert f"\n{name} = {{\n" in path.read_text()
    path.write_text(path.read_text().replace(f"\n{name} = {{\n", f'\n{name} = {{\n    "new": "x",\n'))
    assert digests() == before


@pytest.mark.parametrize(
    ("registry", "other", "used", "change"),
    [
        (runtimes.MODULES, "graph", "generate", {"own_cache": True}),
        (attention.CHOICES, "eager", "sdpa", {"implementation": "another"}),
    ],
)
def test_the_facts_in_its_entries_of_registries_count_for_a_job(monkeypatch, registry, other, used, change):
    before = kinds.code_of(STUDY, ONE)
    monkeypatch.setitem(registry, other, replace(registry[used], **change))
    assert kinds.code_of(STUDY, ONE) == before
    monkeypatch.setitem(registry, used, replace(registry[used], **change))
    assert kinds.code_of(STUDY, ONE) != before


def opens_text_without_encoding(node: ast.AST) -> bool:
    """Whether a call reads or writes text in the encoding of the locale, which is ASCII under LC_ALL=POSIX."""
    if not isinstance(node, ast.Call):
        return False
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    keys = {key.arg: ast.unparse(key.value) for key in node.keywords}
    if name in ("run", "Popen", "check_output") and keys.keys() & {"text", "universal_newlines"}:
        return True
    if ast.unparse(node.func) in ("os.open", "bz2.open", "archive.open"):  # bytes
        return False
    if name not in ("open", "fdopen", "read_text", "write_text", "NamedTemporaryFile"):
        return False
    values = [ast.unparse(one) for one in node.args] + list(keys.values())
    return not {"encoding", None} & keys.keys() and not any(re.fullmatch("'[rwax+]*b[+]?'", one) for one in values)


def test_no_text_is_in_the_encoding_of_the_locale(repository):
    found = [
        f"{path.relative_to(repository)}:{node.lineno}: {ast.unparse(node)}"
        for folder in ("workflow", "tools")
        for path in sorted((repository / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if opens_text_without_encoding(node)
    ]
    assert found == []
