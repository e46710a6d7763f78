"""The origin of a study: what was measured where, when and on which weights, what failed, and how tables are made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmstudy.kinds import KINDS
from llmstudy.report import markdown
from llmstudy.report.study import Study
from llmstudy.tables import every
from llmstudy.tables.columns import CONFIGURATION, WORKLOAD

UNKNOWN = "not recorded"
PACKAGES = ("torch", "transformers", "bitsandbytes", "triton")  # provenance.json names all
CODE = "workflow/scripts/llmstudy"


def what(study: Study) -> str:
    """Return what was measured, on which weights."""
    models = []
    for model in study.models:
        parameters = study.provenance["models"].get(model, {}).get("parameters") or 0
        size = f"{parameters / 1e9:.3g} B" if parameters >= 1e9 else f"{parameters / 1e6:.3g} M"
        kind = "random" if study.is_synthetic(model) else "real"
        models.append(f"`{model}` ({f'{size} ' * bool(parameters)}{kind} weights)")
    count = study.table("summary")["precision"].nunique()
    return f"{count} precision{'s' * (count != 1)} of {markdown.listed(models)}"


def when(study: Study) -> str:
    """Return on which days it was measured."""
    started = [one.get(end) for one in study.provenance["environments"] for end in ("first_started", "last_started")]
    days = sorted({time[:10] for time in started if time})
    return " to ".join(dict.fromkeys([days[0], days[-1]])) if days else "at a time that was not recorded"


def outcome(study: Study) -> str:
    """Return how many processes measured, and how they ended."""
    statuses = sorted(study.provenance["statuses"].items(), key=lambda pair: -pair[1])
    ended = ", ".join(f"{count} `{status}`" for status, count in statuses)
    minutes = study.provenance["wall_s"] / 60
    return f"{study.provenance['records']} processes ({ended}), {minutes:.0f} minutes in all"


def absent(study: Study) -> list[str]:
    """Return what a reader might look for and the study did not measure."""
    texts = [f"the quality of {names}"] if (names := markdown.named(filter(study.is_synthetic, study.models))) else []
    texts += ["accuracy in tasks"] * (not len(study.table("tasks")))
    texts += ["batches"] * bool(study.table("speed")["batch"].max() == 1)
    return [*texts, "energy", "many users at once", "other devices"]


def missing(study: Study) -> str | None:
    """Return what the study asks for and nobody has measured yet; None where it is complete."""
    counts = study.provenance.get("missing")
    if not counts:
        return None
    total, listed = sum(counts.values()), ", ".join(f"{count} {name}" for name, count in counts.items())
    planned = study.provenance["records"] + total
    return f"{total} of {planned} records are not measured yet ({listed})."


def margin(study: Study, quantity: str) -> str:
    """Return the margin within which two configurations count as the same: "10 %"."""
    return f"{study.margin_percent(quantity):g} %"


def panels(study: Study) -> str:
    """Return how many panels a configuration was in, and of how many rounds."""
    rows = study.measured("processes", "rounds")
    counts = rows.groupby([*CONFIGURATION, *WORKLOAD])["process"].nunique()
    return f"A configuration was in {markdown.span(counts)} panels of {markdown.span(rows['rounds'])} rounds"


def environments(study: Study) -> str:
    """Return commit, times, versions and hardware of every environment that measured, a line each."""
    lines = []
    for one in study.provenance["environments"]:
        commit = one.get("git_commit")
        dirty = ", with uncommitted changes" * bool(one.get("git_dirty"))
        packages = ", ".join(f"{name} {one['packages'][name]}" for name in PACKAGES if name in one.get("packages", {}))
        times = [str(one.get(key) or UNKNOWN)[:16].replace("T", " ") for key in ("first_started", "last_started")]
        revision = f"`{commit[:12]}`{dirty}" if commit else UNKNOWN
        lines.append(
            [f"{one['records']}", " to ".join(dict.fromkeys(times)), revision, place(one), packages or UNKNOWN]
        )
    return markdown.grid(["records", "started", "commit", "machine", "versions"], lines, "rllll")


def warnings(study: Study) -> list[str]:
    """Return a sentence for each GPU that the study should have measured on and did not."""
    unused = dict.fromkeys(filter(None, (one.get("unused_gpu") for one in study.provenance["environments"])))
    return [
        f"PyTorch could not use a GPU, so these are numbers of a CPU: {markdown.plain(reason)}." for reason in unused
    ]


def place(environment: Mapping[str, Any]) -> str:
    """Return the machine of an environment, and what kept its processes from some of the cores: pinning, or a quota."""
    cores, host, quota = (environment.get(key) for key in ("cores", "host_cores", "cpu_quota"))
    name = f"{environment.get('cpu', UNKNOWN)}, {environment.get('threads', '?')} of {cores or '?'} cores"
    if host and cores and cores < host:
        name += f", pinned to {cores} of {host}"
    if quota:
        name += f", a CPU quota of {quota:g} core{'s' * (quota != 1)}"
    if gpu := environment.get("gpu"):
        count = f"{gpu['count']} × " * (gpu.get("count", 1) > 1)
        name = f"{count}{gpu['name']}, {gpu['memory_gib']} GiB, driver {gpu.get('driver') or UNKNOWN}; {name}"
    return name


def models(study: Study) -> str:
    """Return the models of a study: what the weights are, and where they come from."""
    configured = {entry["name"]: entry for entry in study.provenance["config"]["models"]}
    rows = []
    for name in study.models:
        model, entry = study.provenance["models"][name], configured.get(name, {})
        weights = "real" if model["real"] else "**random (synthetic weights)**"
        size = f"{model['parameters'] / 1e6:,.1f} M" if model.get("parameters") else UNKNOWN
        given = (model.get("summary"), model.get("fetched_note"), entry.get("note"))
        notes = "; ".join(note.rstrip(".") for note in given if note)
        origin, terms = _origin(model["source"]), entry.get("license") or "none stated"
        rows.append([f"`{name}`", weights, size, origin, terms, notes or markdown.NONE])
        for checkpoint, source in entry.get("checkpoints", {}).items():
            row = [f"`{name}`: `as-published:{checkpoint}`", "as published", UNKNOWN, _origin(source)]
            rows.append([*row, "none stated", markdown.NONE])
    return markdown.grid(["model", "weights", "parameters", "source", "license", "note"], rows, "llrlll")


def _origin(source: Mapping[str, Any]) -> str:
    if source["type"] == "synthetic":
        shape = source["shape"]
        return f"shape {shape if isinstance(shape, str) else 'of its own'}, seed {source.get('seed', 0)}"
    if source["type"] == "hub":
        return f"hub `{source['repo']}` at `{source['revision'][:12]}`"
    if source["type"] == "pypi":
        return f"PyPI `{source['package']}`, sha256 `{source['sha256'][:12]}…`"
    return "a local folder"


def tables(study: Study, root: str) -> str:
    """Return how every table of a study is made: the module that computes it, and what it is computed from; ``root`` is
    the path from the page to the repository."""
    lines = []
    for name, table in every().items():
        if name not in study.tables:
            continue
        modules = [KINDS[kind].module for kind in table.kinds if kind in KINDS]
        sources = [_code(root, module) for module in modules] + [f"`{source}.csv`" for source in table.tables]
        lines.append([study.file(name), table.title, _code(root, table.module), ", ".join(sources)])
    return markdown.grid(["table", "a row", "computed in", "from"], lines, "llll")


def _code(root: str, module: str) -> str:
    path = module.replace(".", "/") + ".py"
    return f"[{path}]({root}{CODE}/{path})"


def failures(study: Study) -> str | None:
    """Return every configuration that failed anywhere, with the table and the full reason. Tables that are made of
    others alone would repeat it; of capacity.csv only a verification that failed counts."""
    rows = []
    for name, source in every().items():
        frame = study.table(name)
        if not source.kinds or frame.empty or name == "advice":
            continue
        if "prediction" in frame:
            frame = frame[frame["prediction"].notna()]
            ended = frame["prediction"].where(~frame["prediction"].isin(["held", "missed"]), "ok")
            frame = frame.assign(status=ended, reason=frame["prediction_reason"])
        failed = frame[frame["status"] != "ok"]
        for key, group in failed.groupby([*CONFIGURATION, "status", "reason"], sort=False, dropna=False):
            model, precision, attention, runtime, status, reason = key
            words = markdown.FAILED.get(status, status)
            reason = markdown.plain(reason) if isinstance(reason, str) and reason else "no reason recorded"
            configuration = f"`{model}` `{precision}` {attention}, {runtime}"
            rows.append([f"`{name}`", configuration, str(len(group)), f"`{status}`: {words}", reason])
    return markdown.grid(["table", "configuration", "rows", "status", "reason"], rows, "llrll") if rows else None
