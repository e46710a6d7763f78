"""Every page: links lead somewhere, paths exist, commands run, YAML is a valid study, lists are complete."""

import copy
import re
import shlex
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import describe_config
import pages
import pytest
import tiny
import yaml
from checkout import Checkout
from llmstudy import cli, kinds, runtimes
from llmstudy import config as study_config

# Pages whose every command is known below; those in docs/ also show commands of clusters.
STRICT = [page for page in pages.ROOT_PAGES if page != "CHANGELOG.md"] + ["docs/troubleshooting.md"]
STUDIES = ["README.md", "config/README.md", "docs/cluster.md"]  # pages with studies, or parts of them
# What the reader writes, what the workflow makes, and what a page calls absent.
NEED_NOT_EXIST = {"workflow/scripts/llmstudy/models/precisions/nf4_dq.py", "REPORT.md", "workflow/Snakefile"}
OURS = re.compile(
    r"^(?:\.ci|\.github|config|docs|envs|slurm|tests|tools|workflow)/[\w./-]*$|^[A-Z][\w-]*\.(?:md|cff)$|^\w+\.txt$"
)
PROGRAMS = ("git", "cd", ".", "pytest", "ruff", "snakefmt", "pre-commit")  # need no file of ours


def commands(page: str) -> list[str]:
    """Lines of the page's shell blocks, without comments."""
    lines = "\n".join(pages.blocks(pages.read(page), "bash")).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


SNAKEMAKE = sorted({line for page in pages.all_pages() for line in commands(page) if line.startswith("snakemake ")})


@pytest.mark.parametrize("page", pages.all_pages())
def test_links_and_paths_lead_somewhere(page):
    text = pages.read(page)
    folder = (pages.REPOSITORY / page).parent
    for target in pages.LINK.findall(pages.prose(text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = folder / path if path else pages.REPOSITORY / page
        assert file.exists(), target
        assert not anchor or anchor in pages.anchors(file.read_text(encoding="utf-8")), target
    named = {span for span in pages.code_spans(text) if OURS.match(span)} - NEED_NOT_EXIST
    assert {name for name in named if not ((pages.REPOSITORY / name).exists() or (folder / name).exists())} == set()


@pytest.mark.parametrize("page", STRICT)
def test_every_command_is_one_that_is_checked(page):
    makefile = pages.read("Makefile")
    for line in commands(page):
        program, *arguments = shlex.split(line)
        if program == "make":
            for argument in arguments:
                variable, assigned, _ = argument.partition("=")
                wanted = rf"^{variable} \?=" if assigned else rf"^{variable}:.*## "
                assert re.search(wanted, makefile, re.M), line
        elif program in ("python", "python3"):
            files = [argument for argument in arguments if argument.endswith((".py", ".txt"))]
            assert arguments[:2] in (["-m", "venv"], ["-m", "pip"]) or files, line
            assert all((pages.REPOSITORY / file).exists() for file in files), line
        elif program == "llmstudy":
            cli.parser().parse_args(arguments)
        else:  # Snakemake's are run by test_snakemake_commands_work
            assert program in ("snakemake", *PROGRAMS), line


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Checkout:
    """A checkout with the studies that README.md and config/README.md tell the reader to write."""
    checkout = Checkout(tmp_path_factory.mktemp("checkout"))
    for page in STUDIES:
        for block in pages.blocks(pages.read(page), "yaml"):
            if name := yaml.safe_load(block).get("study"):
                (checkout.folder / f"{name}.yaml").write_text(block)
    return checkout


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Checkout:
    """A checkout in which the shipped studies were measured."""
    checkout = Checkout(tmp_path_factory.mktemp("measured"))
    (checkout.folder / "results").mkdir()
    for name, committed in (("default", "cpu"), ("h200", "h200")):
        (checkout.folder / "results" / name).symlink_to(pages.REPOSITORY / "results" / committed)
    return checkout


@pytest.mark.slow
@pytest.mark.parametrize("command", SNAKEMAKE)
def test_snakemake_commands_work(command, workspace, measured):
    """Each as a dry run, the default study once; what would need conda or finished jobs is only parsed."""
    from snakemake.cli import parse_args

    arguments = [word for word in shlex.split(command)[1:] if word not in ("-n", "--dry-run")]
    if "<" in command:  # a placeholder stands for a file
        pytest.skip("a pattern, not a command")
    parse_args(arguments)
    if not arguments or {"--unlock", "--report", "--use-conda", "--rerun-incomplete"} & set(arguments):
        return
    # A file that the reader writes may lie anywhere.
    arguments = [Path(word).name if (workspace.folder / Path(word).name).exists() else word for word in arguments]
    if "--profile" in arguments:
        arguments += ["--sdm", "env-modules"]
    assert (measured if "measure=nothing" in arguments else workspace).dry_run(*arguments)


@pytest.mark.slow
def test_merging_replaces_lists_and_keeps_what_mappings_do_not_name(workspace):
    counts = workspace.dry_run("--configfile", "config/config.yaml", "two.yaml")
    assert counts["measure_time"] == counts["measure_quality"] == 2  # panels, precisions


@pytest.mark.parametrize("page", STUDIES)
def test_yaml_is_a_valid_study(page, tmp_path):
    """Every block, alone if it names a study, else put into one that has what it leaves out."""
    whole = tiny.study(tmp_path)
    for block in pages.blocks(pages.read(page), "yaml"):
        given = yaml.safe_load(block)
        if "study" in given and "corpora" in given:
            kinds.check(study_config.complete(given))
            continue
        study = copy.deepcopy(whole) | given
        if study["reference"] not in study["precisions"]:
            study["reference"] = study["precisions"][0]
        if {"models", "speed"} & set(given):
            anyone = {"name": "any", "context": 8192, "source": whole["models"][0]["source"]}
            study["models"] = given.get("models") or [anyone]
        study_config.complete(study)


def keys_of(node) -> set[str]:
    """Names of all keys in a schema, found by another walk than that of describe_config."""
    if isinstance(node, list):
        return set().union(*map(keys_of, node))
    return set(node.get("properties", {})).union(*map(keys_of, node.values())) if isinstance(node, dict) else set()


def test_tables_of_keys_are_those_of_the_schema():
    page = pages.read("config/README.md")
    schema = yaml.safe_load(study_config.SCHEMA.read_text())
    made = describe_config.insert(page, describe_config.describe(schema))
    assert page == made, "run: python tools/describe_config.py"
    described = set(re.findall(r"\w+", " ".join(re.findall(r"^(?:### `\S+`|\| `\w+`)", page, re.M))))
    assert keys_of(schema) - described == {"type"}
    assert not [row for row in pages.rows(page) if len(row) == 4 and row[2] not in ("required", "–") and not row[3]]


def test_every_runtime_and_shipped_study_is_explained():
    config = pages.read("config/README.md")
    assert set(runtimes.MODULES) <= set(pages.code_spans(pages.section(config, "Attention and runtimes")))
    listed = {row[0].split("]")[0].strip("[") for row in pages.rows(config)}
    assert {path.name for path in (pages.REPOSITORY / "config").glob("*.yaml")} <= listed


def requirements(file: str) -> dict[str, str]:
    """Package → version of the pins in a requirements file itself."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)", pages.read(file), re.M))


def test_every_dependency_has_its_reason():
    reasons = pages.section(pages.read("docs/decisions.md"), "Dependencies")
    named = set(pages.code_spans(reasons))
    assert set(requirements("requirements.txt")) | set(requirements("requirements-dev.txt")) <= named


def test_the_table_of_tests_names_every_file_once():
    folder = pages.REPOSITORY / "tests"
    named = [span for row in pages.rows(pages.read("tests/README.md")) for span in pages.code_spans(row[0])]
    patterns = [name for name in named if re.match(r"test_|\w+/$", name)]
    assert [name for name in patterns if not list(folder.glob(name.rstrip("/")))] == []
    files = {path.name for path in folder.glob("test_*.py")} | {path.parent.name for path in folder.glob("*/*.py")}
    assert sorted(file for file in files if not any(fnmatch(file, name.rstrip("/")) for name in patterns)) == []


def test_hooks_run_the_pinned_tools():
    hooks = yaml.safe_load(pages.read(".pre-commit-config.yaml"))["repos"]
    pins = requirements("requirements-dev.txt")
    assert [repo["repo"] for repo in hooks] == ["local"]
    for hook in hooks[0]["hooks"]:
        assert hook["additional_dependencies"] == [f"{hook['entry'].split()[0]}=={pins[hook['entry'].split()[0]]}"]


def test_continuous_integration_runs_what_ci_run_runs():
    workflow = yaml.safe_load(pages.read(".github/workflows/ci.yml"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert any(".ci/run" in step.get("run", "") for step in steps)


def test_citation_changelog_and_package_agree_on_version_and_license():
    citation = yaml.safe_load(pages.read("CITATION.cff"))
    package = tomllib.loads(pages.read("pyproject.toml"))["project"]
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= set(citation)
    assert citation["license"] == package["license"] == "MIT" and pages.read("LICENSE").startswith("MIT License")
    newest = re.search(r"^## \[?(\d+\.\d+\.\d+)", pages.read("CHANGELOG.md"), re.M)[1]
    assert citation["version"] == package["version"] == newest


def test_the_changelog_lists_every_renamed_key():
    listed = pages.code_spans(pages.read("CHANGELOG.md"))
    assert set(study_config.RENAMED) - {"diagnostics.sweep"} <= set(listed)


# ------------------------------------------------------------------------------------------------ the rules


def rules() -> dict[str, str]:
    """Rule → its text, with that of the rule that it varies; a rule made in a loop is called ``name_<>``."""
    text = "\n".join(path.read_text() for path in sorted((pages.REPOSITORY / "workflow/rules").glob("*.smk")))
    text = re.sub(r'^    rule:\n        name:\n            f"(\w+)_\{name\}"', r"rule \1_<>:", text, flags=re.M)
    parts = re.split(r"^(?:rule ([\w<>]+)|use rule (\w+) as (\w+) with):\n", text, flags=re.M)
    found: dict[str, str] = {}
    for name, base, variant, body in zip(*(parts[start::4] for start in (1, 2, 3, 4))):
        body = body.split("\n\n\n")[0]
        conda = re.search(r'"../../envs/\w+.yaml"', body)
        kept = found[base] if base and not conda else re.sub(r'"../../envs/\w+.yaml"', "", found.get(base, ""))
        found[name or variant] = body + kept
    return found


def test_the_table_of_rules_is_that_of_the_workflow():
    there = rules()
    section = pages.section(pages.read("workflow/README.md"), "Rules")
    table = {re.sub("<.*>", "<>", row[0].strip("`")): row[1:] for row in pages.rows(section)}
    assert set(table) == set(there)
    local = set(re.findall(r"^    (fetch_\w+),$", pages.read("workflow/rules/fetch.smk"), re.M))
    for name, (makes, environment, where) in table.items():
        body = there[name]
        assert f'"../../envs/{environment.strip("`")}.yaml"' in body, name
        assert where.startswith("here") == (name in local or "localrule: True" in body), name
        if measured := {kind for kind, one in kinds.KINDS.items() if one.rule == name}:
            assert measured == set(re.findall(r"`(\w+)`", makes)), name
        else:
            written = re.sub(r"\{\{?\w*\}?\}", "<>", body.replace("{RESULTS}/", ""))
            paths = [re.sub("<.*?>", "<>", span) for span in re.findall(r"`([^`]+(?:\.\w+|/))`", makes)]
            assert paths and all(f'{path.rstrip("/")}"' in written for path in paths), (name, paths)
