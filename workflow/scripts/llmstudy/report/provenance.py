"""The origin of a study and its models, in words and as tables."""

from __future__ import annotations

from collections.abc import Mapping

from llmstudy.errors import Unsupported
from llmstudy.llama import Shape
from llmstudy.report import markdown
from llmstudy.report.study import Study

UNKNOWN = "not recorded"
SHOWN = 3  # environments that a table has room for


def outcome(study: Study) -> str:
    """Return how many processes measured, and how they ended."""
    statuses = sorted(study.provenance["statuses"].items(), key=lambda pair: -pair[1])
    ended = ", ".join(f"{count} `{status}`" for status, count in statuses)
    minutes = study.provenance["wall_s"] / 60
    return f"{study.provenance['records']} measuring processes ({ended}), {minutes:.0f} minutes in all"


def missing(study: Study) -> str | None:
    """Return what the study asks for and nobody has measured yet; None where it is complete."""
    counts = study.provenance.get("missing")
    if not counts:
        return None
    total, listed = sum(counts.values()), ", ".join(f"{count} {name}" for name, count in counts.items())
    planned = study.provenance["records"] + total
    return f"**This study is not complete: {total} of its {planned} records are not measured yet ({listed}).**"


def timed(studies: list[Study]) -> str:
    """Return how many calls and seconds each study times at least per process and workload."""
    settings = [(study.name, study.provenance["config"]["speed"]) for study in studies]
    texts = [f"`{name}`: {one['minimum_runs']} calls and {one['minimum_seconds']:g} s" for name, one in settings]
    return f"study {', study '.join(texts)}"


def table(study: Study) -> str:
    """Return versions, hardware and times, a column for each of the environments that most records come from."""
    environments = study.provenance["environments"][:SHOWN]
    described = [_facts(environment) for environment in environments]
    names = dict.fromkeys(name for facts in described for name in facts)
    header = ["", *(f"{environment['records']} records" for environment in environments)]
    rows = [[name, *(facts.get(name, UNKNOWN) for facts in described)] for name in names]
    return markdown.grid(header, rows, "l" * len(header))


def _facts(environment: Mapping) -> dict[str, str]:
    gpu, commit = environment.get("gpu"), environment.get("git_commit")
    dirty = " with uncommitted changes" if environment.get("git_dirty") else ""
    packages = ", ".join(f"{name} {version}" for name, version in environment.get("packages", {}).items())
    facts = {
        "git commit": f"`{commit[:12]}`{dirty}" if commit else UNKNOWN,
        "first and last start": f"{environment.get('first_started')} – {environment.get('last_started')}",
        "Python": environment.get("python", UNKNOWN),
        "packages": packages or UNKNOWN,
        "system": environment.get("system", UNKNOWN),
        "CPU": f"{environment.get('cpu', UNKNOWN)} ({', '.join(environment.get('cpu_capabilities', []))})",
        "cores and threads": f"{environment.get('cores', '?')} usable, {environment.get('threads', '?')} used",
        "host memory": f"{environment.get('host_memory_gib', '?')} GiB",
    }
    if gpu:
        facts["GPU"] = (
            f"{gpu['name']}, {gpu['memory_gib']} GiB, {gpu['multiprocessors']} multiprocessors, compute capability "
            f"{gpu['compute_capability']}"
        )
        facts["driver and CUDA"] = f"{gpu['driver'] or UNKNOWN}, CUDA {gpu['cuda']}"
    return facts


def shape_of(study: Study, model: str) -> Shape | None:
    """Return the shape of a model; None where it is not known, or not that of a LLaMA."""
    try:
        return Shape.of(study.provenance["models"][model]["architecture"])
    except Unsupported:
        return None


def models(study: Study) -> str:
    """Return the models of a study: what the weights are, where they come from, their shape."""
    configured = {entry["name"]: entry for entry in study.provenance["config"]["models"]}
    rows = []
    for name in study.models:
        model, shape, entry = study.provenance["models"][name], shape_of(study, name), configured.get(name, {})
        notes = [note.rstrip(".") for note in (model.get("fetched_note"), entry.get("note")) if note]
        rows.append(
            [
                f"`{name}`",
                "real" if model["real"] else "**random (synthetic weights)**",
                f"{model['parameters'] / 1e6:,.1f} M" if model.get("parameters") else UNKNOWN,
                f"{shape.layers} × {shape.hidden}" if shape else UNKNOWN,
                f"{shape.heads}, {shape.kv_heads}" if shape else UNKNOWN,
                _origin(model["source"]),
                entry.get("license") or "none stated",
                "; ".join(notes) or "–",
            ]
        )
    header = ["model", "weights", "parameters", "layers × width", "heads, key-value heads", "source", "license", "note"]
    return markdown.grid(header, rows, "llrlllll")


def _origin(source: Mapping) -> str:
    if source["type"] == "synthetic":
        shape = source["shape"]
        return f"shape {shape if isinstance(shape, str) else 'of its own'}, seed {source.get('seed', 0)}"
    if source["type"] == "hub":
        return f"hub `{source['repo']}` at `{source['revision'][:12]}`"
    if source["type"] == "pypi":
        return f"PyPI `{source['package']}`, sha256 `{source['sha256'][:12]}…`"
    return "a local folder"
