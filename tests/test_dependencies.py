"""The list of library files that a step depends on, against what Python really imports."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from llmstudy import code as dependencies
from llmstudy import plan, runtimes
from llmstudy.measure import MODULES as KINDS
from llmstudy.models import precisions
from llmstudy.plan import Measurement

LIBRARY = dependencies.ROOT
# Imported by name at run time: the registries and the measurement that the job names.
IMPORTS = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(f"llmstudy.{name}")
print(json.dumps([module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "llmstudy"]))
"""


def imported(*modules: str) -> set[str]:
    """Files of the library, other than ``__init__``, that importing the modules loads in a fresh process."""
    run = subprocess.run(
        [sys.executable, "-c", IMPORTS, *modules],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(LIBRARY.parent)},
    )
    return {name(path) for path in json.loads(run.stdout) if Path(path).name != "__init__.py"}


def name(path: str) -> str:
    return str(Path(path).resolve().relative_to(LIBRARY))


def listed(*modules: str) -> set[str]:
    return {name(path) for path in dependencies.files(*modules)}


def test_another_source_concerns_no_measurement_and_no_other_source():
    """Or a comment in the module for Wikipedia would measure every model again."""
    measuring = listed("sources.weights")
    assert "sources/layout.py" in measuring
    assert not {f"sources/{one}.py" for one in ("hub", "pypi", "wikipedia", "corpora", "models")} & measuring
    assert "sources/wikipedia.py" not in listed("sources.models")
    assert "sources/synthetic.py" not in listed("sources.corpora")


def test_every_module_that_an_import_loads_is_listed():
    """One process for all: the steps of the workflow, every kind, every precision and every runtime."""
    modules = ["steps", "worker", "sources.models", "sources.corpora"]
    modules += [f"measure.{module}" for module in KINDS.values()]
    modules += [f"precisions.{module}" for module in set(precisions.MODULES.values())]
    modules += [f"runtimes.{module}" for module, _ in runtimes.MODULES.values()]
    assert imported(*modules) - listed(*modules) == set()


def test_tables_import_nothing_that_is_not_listed():
    tables = [f"tables.{path.stem}" for path in (LIBRARY / "tables").glob("*.py") if path.stem != "__init__"]
    assert imported(*tables) - listed(*tables) == set()
    assert not {"measure/latency.py", "runtimes/eager.py"} & listed("tables.latency")


def test_imports_inside_functions_and_for_type_checking_count():
    assert "sources/weights.py" in listed("precisions.dense")
    assert "precisions/int8/linear.py" in listed("precisions.int8_fused")
    assert "measure/gpu.py" in listed("provenance")


def test_registries_are_followed_but_not_listed():
    found = listed("worker", "measure.latency")
    assert not [path for path in found if path.endswith("__init__.py")]
    assert "precisions/base.py" in found  # precisions/__init__.py imports it


def test_files_exist_and_are_relative_to_the_working_folder(tmp_path, monkeypatch):
    assert all(Path(path).exists() for path in dependencies.files("worker"))
    monkeypatch.chdir(tmp_path)
    found = dependencies.files("worker")
    assert found == sorted(found) and not any(Path(path).is_absolute() for path in found)
    assert all(Path(path).exists() for path in found)


def test_a_cycle_of_imports_ends(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text("from llmstudy import b\n")
    (tmp_path / "b.py").write_text("import llmstudy.a\nfrom llmstudy.b import something\n")
    monkeypatch.setattr(dependencies, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert dependencies.files("a") == ["a.py", "b.py"]


def test_an_unknown_module_is_an_error():
    with pytest.raises(FileNotFoundError):
        dependencies.files("measure.nothing")


@pytest.mark.slow
def test_a_measurement_that_ran_used_only_what_is_listed(tmp_path):
    """The whole way through worker, session, precision and runtime, not the imports alone."""
    import tiny

    tiny.save_model(tmp_path / "source")
    model = tiny.fetch({"type": "path", "folder": str(tmp_path / "source")}, tmp_path / "model")
    corpus = tiny.save_corpus(tmp_path / "corpus")
    told = tiny.job("speed", model, corpus, precision="llm-int8")
    (tmp_path / "job.json").write_text(json.dumps(told))
    code = (
        "import json, sys, llmstudy.steps; from llmstudy.measure import bandwidth; bandwidth.COPY_BYTES['cpu'] = 2**16;"
        "from llmstudy import worker; worker.main(*sys.argv[1:]);"
        "print(json.dumps([m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'llmstudy']))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *(str(tmp_path / part) for part in ("job.json", "result.json", "."))],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(LIBRARY.parent)},
    )
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "ok", run.stderr
    loaded = {name(path) for path in json.loads(run.stdout.splitlines()[-1]) if Path(path).name != "__init__.py"}
    files = plan.library_files(Measurement("speed", "tiny", "llm-int8", "sdpa", "generate"))
    assert loaded - {name(path) for path in files} == set()
    assert "precisions/llm_int8.py" in loaded and "runtimes/eager.py" in loaded
