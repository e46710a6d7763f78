"""Every page: links lead somewhere, paths exist, commands run, YAML is a valid study, lists are complete."""

import copy
import re
import shlex
import sys
from fnmatch import fnmatch
from pathlib import Path

import pages
import pytest
import tiny
import yaml
from llmstudy import config as study_config
from llmstudy import runtimes

# Pages whose every command is known below; those in docs/ also show commands of clusters.
STRICT = [page for page in pages.ROOT_PAGES if page != "CHANGELOG.md"]
# What the reader is told to write, what the workflow makes, and what is named for its absence.
NEED_NOT_EXIST = {"workflow/scripts/llmstudy/precisions/nf4_dq.py", "REPORT.md", "workflow/Snakefile"}
OURS = re.compile(
    r"^(?:\.ci|\.github|config|docs|envs|slurm|tests|workflow)/[\w./-]*$|^[A-Z][\w-]*\.(?:md|cff)$|^\w+\.txt$"
)


def commands(page: str) -> list[str]:
    """Lines of the page's shell blocks, without comments."""
    lines = "\n".join(pages.blocks(pages.read(page), "bash")).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


SNAKEMAKE = sorted({line for page in pages.all_pages() for line in commands(page) if line.startswith("snakemake ")})


@pytest.mark.parametrize("page", pages.all_pages())
def test_links_lead_somewhere(page):
    text = pages.read(page)
    for target in pages.LINK.findall(pages.prose(text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (pages.REPOSITORY / page).parent / path if path else pages.REPOSITORY / page
        assert file.exists(), f"{page}: {target}"
        assert not anchor or anchor in pages.anchors(file.read_text(encoding="utf-8")), f"{page}: {target}"


@pytest.mark.parametrize("page", pages.all_pages())
def test_paths_exist(page):
    text = pages.read(page)
    named = {span for span in pages.code_spans(text) if OURS.match(span)} - NEED_NOT_EXIST
    folder = (pages.REPOSITORY / page).parent
    missing = {name for name in named if not ((pages.REPOSITORY / name).exists() or (folder / name).exists())}
    assert not missing


@pytest.mark.parametrize("page", pages.all_pages())
def test_no_line_is_a_stub(page):
    assert not re.search(r"\b(TODO|FIXME|TBD|XXX)\b|lorem ipsum|coming soon", pages.read(page), re.I)


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
        else:
            # The rest is run by test_snakemake_commands_work, or needs no file of ours.
            assert program in ("snakemake", "git", "cd", ".", "pytest", "ruff", "snakefmt", "pre-commit"), line


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A checkout with the studies that README.md and config/README.md tell the reader to write."""
    folder = pages.workspace(tmp_path_factory.mktemp("checkout"))
    for page in ("README.md", "config/README.md"):
        for block in pages.blocks(pages.read(page), "yaml"):
            if name := yaml.safe_load(block).get("study"):
                (folder / f"{name}.yaml").write_text(block)
    return folder


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    """A checkout in which the shipped studies were measured."""
    folder = pages.workspace(tmp_path_factory.mktemp("measured"))
    (folder / "results").mkdir()
    for name, committed in (("default", "cpu"), ("h200", "h200")):
        (folder / "results" / name).symlink_to(pages.REPOSITORY / "results" / committed)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", SNAKEMAKE)
def test_snakemake_commands_work(command, workspace, measured):
    """Each as a dry run, the default study once; what would need conda or finished jobs is only parsed."""
    from snakemake.cli import parse_args

    arguments = [word for word in shlex.split(command)[1:] if word not in ("-n", "--dry-run")]
    if "<" in command:  # a placeholder stands for a file
        pytest.skip("a pattern, not a command")
    parse_args(arguments)
    if not arguments or {"--unlock", "--report", "--use-conda", "--rerun-incomplete", "compare"} & set(arguments):
        return
        # A file that the reader writes may lie anywhere.
    arguments = [Path(word).name if (workspace / Path(word).name).exists() else word for word in arguments]
    if "--profile" in arguments:
        arguments += ["--sdm", "env-modules"]
    place = measured if "measure=nothing" in arguments else workspace
    assert pages.job_counts(pages.dry_run(place, *arguments))


@pytest.mark.slow
def test_merging_replaces_lists_and_keeps_what_mappings_do_not_name(workspace):
    counts = pages.job_counts(pages.dry_run(workspace, "--configfile", "config/config.yaml", "quick.yaml"))
    # two precisions × two attention kernels, one repeat instead of two; the default study's ruler, workloads, samples
    assert (counts["measure_latency"], counts["measure_memory"], counts["measure_quality"]) == (4, 4, 2 + 1)
    assert counts["generate_samples"] == 2


@pytest.mark.parametrize("page", ["README.md", "config/README.md"])
def test_yaml_is_a_valid_study(page, tmp_path):
    """Every block, alone or put into a study that has what it leaves out."""
    whole = tiny.study(tmp_path)
    for block in pages.blocks(pages.read(page), "yaml"):
        given = yaml.safe_load(block)
        study = copy.deepcopy(whole) | given
        if study["reference"] not in study["precisions"]:
            study["reference"] = study["precisions"][0]
        if {"models", "speed"} & set(given):
            anyone = {"name": "any", "context": 8192, "source": whole["models"][0]["source"]}
            study["models"] = given.get("models") or [anyone]
        study_config.complete(study)


def test_tables_of_keys_are_those_of_the_schema():
    sys.path.insert(0, str(pages.REPOSITORY / "workflow" / "scripts"))
    import describe_config

    page = pages.read("config/README.md")
    made = describe_config.insert(page, describe_config.describe(yaml.safe_load(study_config.SCHEMA.read_text())))
    assert page == made, "run: python tools/describe_config.py"


def test_every_key_of_the_schema_is_explained():
    """Found by another walk than that of describe_config."""
    names, constants = set(), set()

    def walk(node):
        if isinstance(node, dict):
            for name, part in node.get("properties", {}).items():
                (constants if "const" in part else names).add(name)
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    schema = yaml.safe_load(study_config.SCHEMA.read_text())
    walk(schema)
    page = pages.read("config/README.md")
    headings = set(re.findall(r"^### `(\S+?)`", page, re.M))
    explained = {row[0].strip("`") for row in pages.rows(page)} | {
        part.removesuffix("[]") for heading in headings for part in heading.split(".")
    }
    assert names - explained == set()
    assert constants == {"type"}
    assert not [row for row in pages.rows(page) if len(row) == 4 and row[2] not in ("required", "–") and not row[3]]


def test_every_runtime_is_explained():
    explained = re.search(r"^`runtimes`: (.*?)\n\n", pages.read("config/README.md"), re.M | re.S)[1]
    assert {name for name in runtimes.MODULES if f"`{name}`" in explained} == set(runtimes.MODULES)


def test_every_shipped_study_is_listed():
    listed = {row[0].split("]")[0].strip("[") for row in pages.rows(pages.read("config/README.md"))}
    assert {path.name for path in (pages.REPOSITORY / "config").glob("*.yaml")} <= listed


def requirements(file: str) -> dict[str, str]:
    """Package → version of the pins in a requirements file itself."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)", pages.read(file), re.M))


def test_every_dependency_has_its_reason():
    reasons = pages.section(pages.read("docs/decisions.md"), "Dependencies")
    named = set(pages.code_spans(reasons))
    assert set(requirements("requirements.txt")) | set(requirements("requirements-dev.txt")) <= named


def test_the_files_that_tests_readme_tells_of_exist():
    folder = pages.REPOSITORY / "tests"
    told = [span for span in pages.code_spans(pages.read("tests/README.md")) if re.match(r"test_|\w+/$", span)]
    assert len(told) > 15
    assert [name for name in told if not list(folder.glob(name.rstrip("/")))] == []
    ours = {path.name for path in folder.glob("test_*.py")} | {path.parent.name for path in folder.glob("*/*.py")}
    assert sorted(one for one in ours if not any(fnmatch(one, name.rstrip("/")) for name in told)) == []


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


def test_citation_and_changelog_agree():
    citation = yaml.safe_load(pages.read("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= set(citation)
    assert citation["license"] == "MIT" and pages.read("LICENSE").startswith("MIT License")
    assert citation["version"] == re.search(r"^## \[?(\d+\.\d+\.\d+)", pages.read("CHANGELOG.md"), re.M)[1]
