"""Where a study was measured, in words and as a table."""

from __future__ import annotations

from llmstudy.report import markdown
from llmstudy.report.study import Study

UNKNOWN = "not recorded"
SHOWN = 3


def left_out(study: Study) -> int:
    """Environments that the table has no room for; provenance.json has them all."""
    return max(0, len(study.provenance["environments"]) - SHOWN)


def device(study: Study) -> str:
    """The device in a few words: the GPU's name, or the CPU's and its threads."""
    environment = next(iter(study.provenance["environments"]), {})
    if "gpu" in environment:
        return environment["gpu"]["name"]
    threads = environment.get("threads")
    return f"CPU {environment.get('cpu', UNKNOWN)}" + (f", {threads} thread{'s' * (threads != 1)}" if threads else "")


def outcome(study: Study) -> str:
    """How many processes measured, and how they ended."""
    statuses = study.provenance["statuses"]
    ended = ", ".join(f"{count} `{status}`" for status, count in sorted(statuses.items(), key=lambda pair: -pair[1]))
    minutes = study.provenance["wall_s"] / 60
    return f"{study.provenance['records']} measuring processes ({ended}), {minutes:.0f} minutes in all"


def missing(study: Study) -> str:
    """What the study asks for and nobody has measured yet, in one sentence; empty where it is complete."""
    found = study.provenance.get("missing", {})
    if not found:
        return ""
    listed = ", ".join(f"{count} {name}" for name, count in found.items())
    total = study.provenance["records"] + sum(found.values())
    return f"This study is not complete: {sum(found.values())} of its {total} records are not measured yet ({listed})."


def timed(studies: list[Study]) -> str:
    """How many calls and seconds each study times at least per process and workload."""
    told = []
    for study in studies:
        latency = study.provenance["config"]["processes"]
        told.append(f"study `{study.name}`: {latency['minimum_runs']} calls and {latency['minimum_seconds']:g} s")
    return "; ".join(told)


def table(study: Study) -> str:
    """Versions, hardware and times, a column for each of the environments that most records come from."""
    environments = study.provenance["environments"][:SHOWN]
    described = [facts(environment) for environment in environments]
    names = dict.fromkeys(name for one in described for name in one)
    header = ["", *(f"{environment['records']} records" for environment in environments)]
    rows = [[name, *(one.get(name, UNKNOWN) for one in described)] for name in names]
    return markdown.table(header, rows, "l" * len(header))


def facts(environment: dict) -> dict[str, str]:
    """One environment, fact by fact."""
    gpu = environment.get("gpu")
    dirty = " with uncommitted changes" if environment.get("git_dirty") else ""
    told = {
        "git commit": f"`{environment['git_commit'][:12]}`{dirty}" if environment.get("git_commit") else UNKNOWN,
        "first and last start": f"{environment.get('first_started')} – {environment.get('last_started')}",
        "Python": environment.get("python", UNKNOWN),
        "packages": ", ".join(f"{name} {version}" for name, version in environment.get("packages", {}).items())
        or UNKNOWN,
        "system": environment.get("system", UNKNOWN),
        "CPU": f"{environment.get('cpu', UNKNOWN)} ({', '.join(environment.get('cpu_capabilities', []))})",
        "cores and threads": f"{environment.get('cores', '?')} usable, {environment.get('threads', '?')} used",
        "host memory": f"{environment.get('host_memory_gib', '?')} GiB",
    }
    if gpu:
        told |= {
            "GPU": f"{gpu['name']}, {gpu['memory_gib']} GiB, {gpu['multiprocessors']} multiprocessors, compute "
            f"capability {gpu['compute_capability']}",
            "driver and CUDA": f"{gpu['driver'] or UNKNOWN}, CUDA {gpu['cuda']}",
        }
    return told


def models(study: Study) -> str:
    """The models of a study: what the weights are, where they come from, their shape."""
    configured = {entry["name"]: entry for entry in study.provenance["config"]["models"]}
    rows = []
    for name in study.models:
        model, shape = study.provenance["models"][name], study.provenance["models"][name]["architecture"]
        weights = "real" if model["real"] else "**random (synthetic weights)**"
        notes = [model.get("fetched_note"), configured.get(name, {}).get("note")]
        rows.append(
            [
                f"`{name}`",
                weights,
                f"{model['parameters'] / 1e6:,.1f} M" if model.get("parameters") else UNKNOWN,
                f"{shape['num_hidden_layers']} × {shape['hidden_size']}" if shape else UNKNOWN,
                f"{shape['num_attention_heads']}, {shape['num_key_value_heads']}" if shape else UNKNOWN,
                origin(model["source"]),
                configured.get(name, {}).get("license") or "none stated",
                "; ".join(note.rstrip(".") for note in notes if note) or "–",
            ]
        )
    header = ["model", "weights", "parameters", "layers × width", "heads, key-value heads", "source", "licence", "note"]
    return markdown.table(header, rows, "llrlllll")


def origin(source: dict) -> str:
    """Where weights come from."""
    if source["type"] == "synthetic":
        shape = source["shape"]
        return f"shape {shape if isinstance(shape, str) else 'of its own'}, seed {source.get('seed', 0)}"
    if source["type"] == "hub":
        return f"hub `{source['repo']}` at `{source['revision'][:12]}`"
    if source["type"] == "pypi":
        return f"PyPI `{source['package']}`, sha256 `{source['sha256'][:12]}…`"
    return "a local folder"
