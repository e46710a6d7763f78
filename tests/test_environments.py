"""The conda environments, the pip files and the imports: one set of pins, and nothing imported that is not in it."""

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

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "workflow" / "scripts"
LIBRARY = SCRIPTS / "llmstudy"
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
MEASURING_ENVIRONMENTS = ("measure.yaml", "tasks.yaml")


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


def test_the_advice_to_install_lm_eval_names_its_pin(development):
    from llmstudy.fetch.tasks import PACKAGE

    assert PACKAGE.split("==") == ["lm-eval", development["lm-eval"]]


def test_pip_installs_nothing_that_no_environment_has(requirements):
    inside = set().union(*map(environment, ENVIRONMENTS))
    assert {name for name in requirements if name not in inside} == {"snakemake", "snakemake-executor-plugin-slurm"}


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.stem)
def test_environments_are_what_snakemake_and_conda_both_take(path):
    content = yaml.safe_load(path.read_text())
    assert content["channels"] == ["conda-forge"]  # conda 26.7 reads nodefaults as a channel
    plain = [entry for entry in content["dependencies"] if isinstance(entry, str)]
    assert "pip" in plain and any(re.fullmatch(r"python=3\.\d+", entry) for entry in plain)
    assert set(content) == {"channels", "dependencies"}


def test_no_pin_file_stands_beside_an_environment():
    """Snakemake would take it and drop the pip list without a word."""
    assert not list((ROOT / "envs").glob("*.pin.txt"))


def test_development_starts_from_what_users_install():
    lines = (ROOT / "requirements-dev.txt").read_text().splitlines()
    assert "-r requirements.txt" in lines
    assert pins_of(lines).keys() >= {"pytest", "ruff", "snakefmt"}


# ------------------------------------------------------------------------------------------------ rules and imports


def rules() -> dict[str, str]:
    """Every rule's text by its name; of rules made in a loop, by its script's."""
    text = "\n".join(path.read_text() for path in sorted((ROOT / "workflow" / "rules").glob("*.smk")))
    parts = re.split(r"^ *rule ?(\w*):\n", text, flags=re.MULTILINE)
    return {name or Path(named(rule, "script")).stem: rule for name, rule in zip(parts[1::2], parts[2::2])}


def named(rule: str, directive: str) -> str | None:
    found = re.search(rf'^ +{directive}:\n +"([^"]+)"', rule, flags=re.MULTILINE)
    return found[1] if found else None


RULES = rules()


@pytest.mark.parametrize("name", RULES)
def test_a_rule_has_a_script_of_its_name_an_environment_and_a_log(name):
    rule = RULES[name]
    assert named(rule, "script") == f"../scripts/{name}.py" and (SCRIPTS / f"{name}.py").exists()
    assert named(rule, "conda") in {f"../../envs/{path.name}" for path in ENVIRONMENTS}
    assert re.search(r"^ +log:$", rule, flags=re.MULTILINE)
    if re.search(r"^ +output:$", rule, flags=re.MULTILINE):
        assert "library=" in rule  # a change in the library makes it run again
    for banned in ("lambda", " message:", " run:", " shell:"):
        assert banned not in rule


# Modules that import torch and its like inside functions alone, so that tables and config can use what else is in them.
MEASURING = ("measure", "precisions", "runtimes", "sources", "attention.py", "provenance.py", "worker.py")


class Imports(ast.NodeVisitor):
    """Modules that a file imports when it runs, or when it is imported; nothing under ``if TYPE_CHECKING`` is."""

    def __init__(self, inside_functions: bool):
        self.found = set()
        self.inside_functions = inside_functions

    def visit_FunctionDef(self, node):
        if self.inside_functions:
            self.generic_visit(node)

    def visit_If(self, node):
        if ast.unparse(node.test) != "TYPE_CHECKING":
            self.generic_visit(node)

    def visit_Import(self, node):
        self.found |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node):
        self.found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}


def file_of(module: str) -> Path | None:
    path = SCRIPTS.joinpath(*module.split("."))
    return next((one for one in (path / "__init__.py", path.with_suffix(".py")) if one.exists()), None)


@cache
def imports(path: Path, inside_functions: bool) -> frozenset[str]:
    visitor = Imports(inside_functions)
    visitor.visit(ast.parse(path.read_text()))
    return frozenset(visitor.found)


def third_party(script: Path) -> dict[str, Path]:
    """Every package outside the standard library that a script's code can import, and a file that does."""
    waiting, seen, found = [script], set(), {}
    measures = Path(named(RULES[script.stem], "conda")).name in MEASURING_ENVIRONMENTS
    if measures:  # the child process imports what the job names
        waiting += [LIBRARY / "worker.py"]
        waiting += [one for part in ("measure", "precisions", "runtimes") for one in (LIBRARY / part).rglob("*.py")]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        inside = LIBRARY in path.parents and path.relative_to(LIBRARY).parts[0] in MEASURING
        for module in imports(path, measures or not inside):
            top = module.split(".")[0]
            if top == "llmstudy":
                parts = module.split(".")
                candidates = (file_of(".".join(parts[:length])) for length in range(1, len(parts) + 1))
                waiting += [one for one in candidates if one]
            elif top not in sys.stdlib_module_names:
                found.setdefault(top, path)
    return found


@cache
def installed() -> dict[str, list[str]]:
    return metadata.packages_distributions()


def distribution(package: str) -> str:
    if package in DISTRIBUTIONS:
        return DISTRIBUTIONS[package]
    owners = installed().get(package)
    assert owners, f"{package} is imported, but no installed distribution has it"
    return owners[0]


@pytest.mark.parametrize("name", RULES)
def test_every_import_of_a_rule_is_in_its_environment(name):
    """Snakemake puts its own site-packages on a script's path, which hides a package that an environment forgot."""
    path = ROOT / "envs" / Path(named(RULES[name], "conda")).name
    pins = environment(path)
    optional = OPTIONAL - OWN.get(path.name, set())
    needed = {
        package: where for package, where in third_party(SCRIPTS / f"{name}.py").items() if package not in optional
    }
    missing = {p: str(where) for p, where in needed.items() if normal(distribution(p)) not in pins}
    assert missing == {}


def test_the_walk_sees_what_is_imported():
    found = third_party(SCRIPTS / "measure_latency.py")
    assert {"torch", "transformers", "bitsandbytes", "numpy", "safetensors", "pynvml"} <= set(found)
    assert "pandas" in third_party(SCRIPTS / "aggregate_latency.py")
    assert "torch" not in third_party(SCRIPTS / "aggregate_latency.py")


def test_every_package_of_an_environment_is_imported_or_explained():
    """Packages that nothing imports by name are there for transformers and datasets, and nothing else is."""
    used: dict[str, set[str]] = {}
    for name, rule in RULES.items():
        file = Path(named(rule, "conda")).name
        packages = set(third_party(SCRIPTS / f"{name}.py")) - (OPTIONAL - OWN.get(file, set()))
        used.setdefault(file, set()).update(normal(distribution(one)) for one in packages)
    behind = {"accelerate", "sentencepiece", "gguf", "bitsandbytes", "jinja2", "matplotlib"}
    for path in ENVIRONMENTS:
        assert set(environment(path)) - used[path.name] - behind == set(), path.name


def test_tables_and_pages_are_made_without_torch():
    """Nothing behind the records imports it: the report must render on a machine that cannot measure."""
    modules = [
        f"llmstudy.{part}.{path.stem}"
        for part in ("tables", "figures", "rendering", "statistics", "ties")
        for path in sorted((LIBRARY / part).glob("*.py"))
        if path.stem != "__init__"
    ]
    # Not None in sys.modules: SciPy, which seaborn imports where it is there, takes that for a torch.
    code = """if True:
        import sys, importlib
        class Absent:
            def find_spec(name, path=None, target=None):
                if name in ("torch", "transformers", "bitsandbytes", "datasets"):
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        sys.meta_path.insert(0, Absent)
        [importlib.import_module(name) for name in sys.argv[1:]]
    """
    run = subprocess.run(
        [sys.executable, "-c", code, *modules],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(SCRIPTS)},
    )
    assert run.returncode == 0, run.stderr
