"""The conda environments, the pip files and the imports: one set of pins, nothing imported that is not in it, and
imports of the library that go one way."""

import ast
import os
import re
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from checkout import ROOT, Checkout
from llmstudy import code
from llmstudy.runner import script
from snakemake.settings.types import DeploymentMethod

LIBRARY = code.ROOT
ENVIRONMENTS = sorted((ROOT / "envs").glob("*.yaml"))
# Imports whose distribution is not named like them and may not be installed where the tests run.
DISTRIBUTIONS = {
    "bitsandbytes": "bitsandbytes",
    "pynvml": "nvidia-ml-py",
    "triton": "torch",  # torch's CUDA builds for Linux bring the version that they need
}
# Imported where it is there, and said to be unsupported where it is not.
OPTIONAL = {"flash_attn", "torchao", "lm_eval"}
# What is optional elsewhere but belongs to an environment of its own.
OWN = {"tasks.yaml": {"lm_eval"}}


def normal(name: str) -> str:
    """A distribution's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins_of(lines) -> dict[str, str]:
    pins = {}
    for line in lines:
        text = line.split("#")[0].strip()
        if text and not text.startswith("-r"):
            name, exact, version = text.partition("==")
            assert exact and re.fullmatch(r"[\w.+!-]+", version), f"{text}: not an exact pin"
            pins[normal(name)] = version
    return pins


def environment(path: Path) -> dict[str, str]:
    """The pip pins of a conda environment."""
    listed = yaml.safe_load(path.read_text())["dependencies"]
    return pins_of(next(entry["pip"] for entry in listed if isinstance(entry, dict)))


@pytest.fixture(scope="module")
def requirements():
    return pins_of((ROOT / "requirements.txt").read_text().splitlines())


@pytest.fixture(scope="module")
def development():
    return pins_of((ROOT / "requirements-dev.txt").read_text().splitlines())


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.stem)
def test_conda_and_pip_install_the_same(path, requirements, development):
    pins = environment(path)
    own = {normal(distribution(package)) for package in OWN.get(path.name, ())}
    pinned = requirements | {name: development[name] for name in own}
    assert pins and {name: pinned.get(name) for name in pins} == pins and own <= set(pins)


def test_pip_installs_nothing_that_no_environment_has(requirements, development):
    from llmstudy.fetch.tasks import PACKAGE

    inside = set().union(*map(environment, ENVIRONMENTS))
    assert {name for name in requirements if name not in inside} == {"snakemake", "snakemake-executor-plugin-slurm"}
    assert PACKAGE.split("==") == ["lm-eval", development["lm-eval"]]  # what an error advises
    assert "-r requirements.txt" in (ROOT / "requirements-dev.txt").read_text().splitlines()
    assert development.keys() >= {"pytest", "ruff", "snakefmt"}


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.stem)
def test_environments_are_what_snakemake_and_conda_both_take(path):
    content = yaml.safe_load(path.read_text())
    assert content["channels"] == ["conda-forge"]  # conda 26.7 reads nodefaults as a channel
    plain = [entry for entry in content["dependencies"] if isinstance(entry, str)]
    assert "pip" in plain and any(re.fullmatch(r"python=3\.\d+", entry) for entry in plain)
    assert set(content) == {"channels", "dependencies"}
    # Snakemake would take it and drop the pip list without a word.
    assert not path.with_suffix(".pin.txt").exists() and not list(path.parent.glob("*.pin.txt"))


@pytest.mark.slow
def test_packages_in_the_users_home_stay_out_of_environments(tmp_path):
    """While pip fills them too: it would leave out what it finds at home."""
    checkout = Checkout(tmp_path)
    conda = tmp_path / "conda"
    noted = tmp_path / "noted"
    conda.write_text(
        f'#!/bin/sh\n[ "$1" = env ] && echo "user site $PYTHONNOUSERSITE" >>{noted}\nexec {ROOT}/tests/bin/conda "$@"\n'
    )
    conda.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    checkout.run("--cores", "1", "--use-conda", "--conda-create-envs-only", PATH=path)
    assert set(noted.read_text().splitlines()) == {"user site 1"}
    with pytest.MonkeyPatch().context() as patch:
        patch.delenv("PYTHONNOUSERSITE", raising=False)
        script.isolate([])
        patch.setattr("site.getusersitepackages", lambda: str(Path(metadata.distribution("snakemake").locate_file(""))))
        script.isolate([DeploymentMethod.CONDA])
        assert "PYTHONNOUSERSITE" not in os.environ


def test_a_user_without_a_name_has_a_number(monkeypatch):
    """Snakemake asks for a name before its first job."""
    monkeypatch.delenv("USER", raising=False)
    script.isolate([])
    assert "USER" not in os.environ

    def getuser():
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(script.getpass, "getuser", getuser)
    script.isolate([])
    assert os.environ["USER"] == str(os.getuid())


# ------------------------------------------------------------------------------------------------------------ rules


def test_a_rule_has_a_script_an_environment_and_a_log():
    text = "\n".join(path.read_text() for path in sorted((ROOT / "workflow" / "rules").glob("*.smk")))
    assert not re.search(r"^ +(message|run|shell):", text, re.MULTILINE)
    rules = re.split(r"^ *rule ?\w*:\n", text, flags=re.MULTILINE)[1:]
    assert len(rules) == len(re.findall(r"^ +script:$", text, re.MULTILINE)) > 5
    for rule in rules:
        script, conda = (re.search(rf'^ +{key}:\n +"([^"]+)"', rule, re.MULTILINE)[1] for key in ("script", "conda"))
        assert (ROOT / "workflow" / "rules" / script).exists() and (ROOT / "workflow" / "rules" / conda).exists()
        assert re.search(r"^ +log:$", rule, re.MULTILINE)
        assert re.search(r"^ +code=", rule, re.MULTILINE)  # a change in the library makes it run again


# ---------------------------------------------------------------------------------------------------------- imports


@cache
def imports(path: Path) -> frozenset[str]:
    """Dotted names that a file imports, inside functions too: of modules, or of what is in them."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    whole = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    parts = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    return frozenset(whole | {f"{node.module}.{alias.name}" for node in parts for alias in node.names})


def third_party(files: list[Path]) -> dict[str, Path]:
    """Every package outside the library and the standard library that files import, and a file that does."""
    tops = {name.split(".")[0]: path for path in files for name in imports(path)}
    return {top: path for top, path in tops.items() if top not in {"llmstudy", *sys.stdlib_module_names}}


def in_rooms(*rooms: str) -> list[str]:
    """The modules in some packages of the library."""
    paths = [path for room in rooms for path in sorted((LIBRARY / room).rglob("*.py"))]
    return [".".join(path.relative_to(LIBRARY).with_suffix("").parts) for path in paths if path.stem != "__init__"]


JOB = ["runner.child", *in_rooms("models", "runtimes")]
# The parent of a panel makes its table. `tables.every`, which nothing there calls, would lead to the config.
SETTLED = [path for path in code.files("tables.settled") if path.parent.name in ("stats", "tables")]
PACKAGES = {
    "measure.yaml": third_party([*code.files("fetch.models", "fetch.corpora", *JOB, *in_rooms("measure")), *SETTLED]),
    "tasks.yaml": third_party(code.files("fetch.tasks", *JOB, "measure.diagnostics.tasks")),
    # Not followed to other rooms: functions there import torch, which the test below shows is not needed.
    "report.yaml": third_party(
        [path for room in ("stats", "tables", "report") for path in (LIBRARY / room).rglob("*.py")]
    ),
}


@cache
def installed() -> dict[str, list[str]]:
    return metadata.packages_distributions()


def distribution(package: str) -> str:
    if package in DISTRIBUTIONS:
        return DISTRIBUTIONS[package]
    owners = installed().get(package)
    assert owners, f"{package} is imported, but no installed distribution has it"
    return owners[0]


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.stem)
def test_an_environment_has_what_its_code_imports_and_nothing_else(path):
    """Snakemake puts its own site-packages on a script's path, which hides a package that an environment forgot."""
    optional = OPTIONAL - OWN.get(path.name, set())
    assert ("torch" in PACKAGES[path.name]) == (path.name != "report.yaml")
    needed = {
        normal(distribution(name)): str(file) for name, file in PACKAGES[path.name].items() if name not in optional
    }
    pins = set(environment(path))
    assert {name: file for name, file in needed.items() if name not in pins} == {}
    # Packages that nothing imports by name are there for transformers, datasets and seaborn.
    assert (
        pins - needed.keys() - {"accelerate", "sentencepiece", "gguf", "bitsandbytes", "jinja2", "matplotlib"} == set()
    )


def test_tables_and_pages_are_made_without_torch():
    """Nothing behind the records imports it: the report must render on a machine that cannot measure."""
    # Not None in sys.modules: SciPy takes that for a torch.
    code = """if True:
        import sys, importlib
        class Absent:
            def find_spec(name, path=None, target=None):
                if name in ("torch", "transformers", "bitsandbytes", "datasets"):
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        sys.meta_path.insert(0, Absent)
        [importlib.import_module(f"llmstudy.{name}") for name in sys.argv[1:]]
    """
    run = subprocess.run(
        [sys.executable, "-c", code, *in_rooms("stats", "tables", "report")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(LIBRARY.parent)},
    )
    assert run.returncode == 0, run.stderr


BASE = {"errors", "files", "progress", "llama"}
REGISTRIES = {"models.attention", "models.precisions", "runtimes", "fetch.layout", "fetch.published", "fetch.shapes"}
# Room or module → what it may import beside itself. The most exact entry counts.
MAY_IMPORT = {
    "errors": set(),
    "files": {"errors"},
    "progress": set(),
    "llama": {"errors"},
    "code": set(),
    "config": BASE | REGISTRIES,
    "kinds": BASE | REGISTRIES | {"config", "code", "runner.job"},
    "stats": set(),
    "kernels": BASE,
    "fetch": BASE,
    "models": BASE | {"fetch", "kernels"},
    "runtimes": BASE | {"models", "kernels"},
    "runner": BASE | {"models.precisions"},
    "runner.child": BASE | {"measure"},  # the child process is where a measurement is called
    "measure": BASE | {"stats", "runner", "fetch", "models", "kernels", "runtimes"},
    "tables": BASE | {"stats", "kinds", "runner.record"},
    "report": BASE | {"stats", "tables", "kinds", "models.precisions", "runtimes.BASE"},
    "cli": BASE | {"config", "kinds", "fetch", "runner", "tables"},
}


def test_imports_of_the_library_go_one_way():
    for path in sorted(LIBRARY.rglob("*.py")):
        importer = ".".join(path.relative_to(LIBRARY).with_suffix("").parts).removesuffix(".__init__")
        room = importer.split(".")[0]
        allowed = MAY_IMPORT.get(importer, MAY_IMPORT.get(room, set())) | {room}
        ours = {name.removeprefix("llmstudy.") for name in imports(path) if name.startswith("llmstudy.")}
        wrong = {name for name in ours if not any(f"{name}.".startswith(f"{other}.") for other in allowed)}
        assert not wrong, f"{importer} imports {wrong}"
