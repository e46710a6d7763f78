"""The one registry of measurements: which records a study needs, what each job gets, how its records are tabulated.

A kind is one entry of ``KINDS``, which everything that handles records reads: rules, child process, tables,
report. Standard library only, so that the workflow can be parsed without the packages that measure.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from llmstudy import code, runtimes
from llmstudy.config import PUBLISHED, Model, Study, check_known, fetched_manifest
from llmstudy.errors import StudyError
from llmstudy.fetch import layout
from llmstudy.llama import gpus_needed
from llmstudy.models import attention, precisions
from llmstudy.runner.job import Configuration, Identity, Job, sequences

GIB = 2**30
Plan = Callable[[Study, Model], list[Configuration]]
Settings = Callable[[Study, Model, Configuration], dict]


@dataclass(frozen=True)
class Kind:
    """One kind of measurement."""

    title: str  # heading of its section in the report
    module: str  # the measuring module below ``llmstudy``
    plan: Plan  # the configurations that are measured on a model, each in a process
    settings: Settings  # what the job gets, plain values
    # The module below ``llmstudy`` that makes the table of its name, where ``tables.TABLES`` has none for its records.
    table: str = ""
    key: str = ""  # the part of the config that switches the kind on with ``enabled``; empty if every study measures it
    settings_key: str = ""  # the part of the config that its settings come from, where that is not of its name
    real_only: bool = False  # random weights have no outliers like a trained model's, and no loss worth comparing
    cases: str = ""  # the key of the results whose entries have a status each
    text: Callable[[Study], list[str]] = lambda study: []  # corpora, beside that of prompts and calibration
    logprobs: bool = False  # whether it keeps the reference's log-probabilities or compares with them
    repeats: Callable[[Model], int] = lambda model: 1  # processes for each configuration, at most
    rule: str = "measure"  # the rule that measures it: this one, or a variant with other outputs or resources
    allocator: str | None = None  # settings of PyTorch's CUDA allocator

    def section(self, study: Study) -> dict:
        """Return the part of the config that switches the kind on; empty where nothing does."""
        section = study.config if self.key else {}
        for name in filter(None, self.key.split(".")):
            section = section[name]
        return section

    def enabled(self, study: Study) -> bool:
        """Return whether the study measures the kind."""
        return self.section(study).get("enabled", True)

    def plans(self, study: Study) -> list[tuple[Model, list[Configuration]]]:
        """Return the models that the kind is measured on, each with its configurations; none while it is off."""
        some = self.section(study).get("models")
        return [
            (model, self.plan(study, model))
            for model in study.models
            if self.enabled(study) and (model.real or not self.real_only) and (some is None or model.name in some)
        ]


def configurations(study: Study, model: Model) -> list[Configuration]:
    """Return every precision × runtime × attention kernel of a model."""
    return [
        Configuration(precision, kernel, runtime)
        for precision in model.precisions
        for runtime in model.runtimes
        for kernel in runtimes.kernels_of(runtime, study.attention)
    ]


def each_precision(study: Study, model: Model) -> list[Configuration]:
    """Return every precision of a model under quality's attention kernel."""
    return [Configuration(name, study.quality_attention, runtimes.BASE) for name in model.precisions]


def graded(study: Study, model: Model) -> list[Configuration]:
    """Return every precision whose quality is measured, and under each other runtime those whose token step is. Weights
    that are published alone take no other precision."""
    names = dict.fromkeys([*model.precisions, *(study.quality_only if model.precisions != PUBLISHED else ())])
    others = [name for name in model.runtimes if name != runtimes.BASE and study.quality["decode"]["batches"]]
    return [Configuration(name, study.quality_attention, runtimes.BASE) for name in names] + [
        Configuration(name, quality_kernel(study, runtime), runtime) for runtime in others for name in model.precisions
    ]


def quality_kernel(study: Study, runtime: str) -> str:
    """Return the attention kernel of quality in a runtime: the configured one where the runtime can take it."""
    able = runtimes.kernels_of(runtime, study.attention)
    return study.quality_attention if runtimes.kernels_of(runtime, [study.quality_attention]) else able[-1]


def the_reference(study: Study, model: Model) -> list[Configuration]:
    """Return the reference under quality's attention kernel."""
    return [Configuration(model.reference, study.quality_attention, runtimes.BASE)]


def exact(study: Study, model: Model) -> list[Configuration]:
    """Return fp32 under quality's attention kernel, whatever the reference is: 16 bits hide small effects."""
    return [Configuration("fp32", study.quality_attention, runtimes.BASE)] if model.precisions != PUBLISHED else []


def profiled(study: Study, model: Model) -> list[Configuration]:
    """Return one attention kernel of each precision and runtime: quality's where it is measured, else the first."""
    chosen: dict[tuple[str, str], Configuration] = {}
    for one in configurations(study, model):
        if (one.precision, one.runtime) not in chosen or one.attention == study.quality_attention:
            chosen[one.precision, one.runtime] = one
    return list(chosen.values())


def every_kernel(study: Study, model: Model) -> list[Configuration]:
    """Return each attention kernel, in 16 bit: no weights are loaded."""
    kernels = study.diagnostics["attention"]["kernels"] or study.attention
    return [Configuration("bf16", name, runtimes.BASE) for name in kernels]


def quality_settings(study: Study, model: Model, configuration: Configuration) -> dict:
    """Return the settings of quality."""
    keys = ("protocols", "decode", "bos", "documents", "tokens_per_document", "max_tokens", "kl_tokens")
    settings = {key: study.quality[key] for key in keys} | {"corpora": study.quality_corpora}
    if configuration.runtime != runtimes.BASE:
        settings["protocols"] = []  # windows go through the library's forward pass whatever the runtime
    elif settings["decode"]["batches"]:
        settings["decode"] = settings["decode"] | {"batches": [0, *settings["decode"]["batches"]]}
    return settings | {"reference": model.reference}


def reference_settings(study: Study, model: Model, configuration: Configuration) -> dict:
    """Return the settings of the reference; of the windows the first protocol alone is compared token by token."""
    settings = quality_settings(study, model, configuration)
    return settings | {"protocols": study.quality["protocols"][:1], "decode": study.quality["decode"]}


def panel_reference(study: Study, model: Model) -> list[Configuration]:
    """Return the configuration that every group of a panel holds: the reference under the runtime that the study names
    last, the one with the least noise."""
    own = [one for one in configurations(study, model) if one.precision == model.reference]
    own = [one for one in own if one.runtime == model.runtimes[-1]]
    return [next((one for one in own if one.attention == study.quality_attention), own[0])]


def panel_settings(study: Study, model: Model, configuration: Configuration) -> dict:
    """Return the settings of a panel; ``job`` adds what depends on the number of the process."""
    members = [configuration, *(one for one in configurations(study, model) if one != configuration)]
    panels = {key: study.speed["panels"][key] for key in ("rounds", "seconds")}
    return panels | {
        "configurations": [list(one) for one in members],
        "probes": [Identity(study.name, "probe", model.name, *one).path for one in members],
        "workloads": list(model.workloads),
        "warmup": study.speed["warmup"],
        "order_seed": study.speed["order_seed"],
        "until": None,
    }


def probe_settings(study: Study, model: Model, configuration: Configuration) -> dict:
    """Return the settings of a probe."""
    return {"workloads": list(model.probe_workloads)}


def diagnostic(name: str, title: str, plan: Plan, corpus: Callable[[Study], str] | None = None, **facts) -> Kind:
    """Return a kind that the config switches on as ``diagnostics.<name>``, whose keys there are its settings.

    Args:
        corpus: (study) → the corpus that is read, in disjoint windows of the first protocol's length; None for no text.
        facts: further attributes of the kind.
    """

    def settings(study: Study, model: Model, configuration: Configuration) -> dict:
        section = study.diagnostics[name]
        keys = {key: value for key, value in section.items() if key not in ("enabled", "kernels", "models")}
        if not corpus:
            return keys
        window = study.quality["protocols"][0]["window"]
        text = {"bos": study.quality["bos"], "corpus": corpus(study), "max_tokens": None}
        return keys | text | {"protocol": {"window": window, "stride": window}}

    return Kind(title, f"measure.diagnostics.{name}", plan, settings, key=f"diagnostics.{name}", **facts)


def capacity_settings(study: Study, model: Model, configuration: Configuration) -> dict:
    """Return the settings of the verification of capacity, which is around what a probe predicts."""
    capacity = study.diagnostics["capacity"]
    context = capacity["verify"]["context"]
    return {
        "contexts": [context] if context else capacity["contexts"],
        "device_gib": capacity["device_gib"],
        "probe": Identity(study.name, "probe", model.name, *configuration).path,
    }


KINDS = {
    # Checked before the probes, which take its workloads over where the config gives them none: a mistake is in these.
    "panel": Kind(
        "Panels",
        "measure.panel",
        panel_reference,
        panel_settings,
        settings_key="speed",
        cases="entries",
        repeats=lambda model: model.panels["maximum"],
        rule="measure_time",
    ),
    "probe": Kind("Probes", "measure.probe", configurations, probe_settings, cases="workloads"),
    "reference": Kind(
        "Reference",
        "measure.reference",
        the_reference,
        reference_settings,
        settings_key="quality",
        real_only=True,
        text=lambda study: study.quality_corpora,
        logprobs=True,
        rule="measure_reference",
    ),
    "quality": Kind(
        "Quality",
        "measure.quality",
        graded,
        quality_settings,
        real_only=True,
        cases="protocols",
        text=lambda study: study.quality_corpora,
        logprobs=True,
        rule="measure_quality",
    ),
    "generations": Kind(
        "Generated text",
        "measure.generations",
        lambda study, model: each_precision(study, model) if study.generations["prompts"] else [],
        lambda study, model, configuration: dict(study.generations),
        real_only=True,
    ),
    "outliers": diagnostic(
        "outliers", "Outlier statistics", the_reference, lambda study: study.prompt_corpus, real_only=True
    ),
    "sensitivity": diagnostic(
        "sensitivity",
        "Sensitivity to rounding",
        exact,
        lambda study: study.quality_corpora[0],
        real_only=True,
        text=lambda study: study.quality_corpora[:1],
    ),
    "invariance": diagnostic("invariance", "Batch invariance", each_precision, real_only=True, cases="batches"),
    "profile": diagnostic("profile", "Where a decode step's time goes", profiled, rule="measure_time"),
    "attention": diagnostic("attention", "Attention kernels alone", every_kernel, cases="points", rule="measure_time"),
    "tasks": diagnostic("tasks", "Tasks", each_precision, real_only=True, cases="tasks", rule="measure_tasks"),
    # The model predicts what is allocated. By default the allocator splits blocks and cannot give the parts back, up to
    # a fifth of an H200 after a long prefill, so that no model of the workload alone says what fits.
    "capacity": Kind(
        "Capacity",
        "measure.diagnostics.capacity",
        configurations,
        capacity_settings,
        key="diagnostics.capacity.verify",
        allocator="expandable_segments:True",
    ),
}


def records(study: Study, *names: str) -> list[Identity]:
    """Return the identity of every record that the study needs, of the kinds ``names`` or of all."""
    return [
        Identity(study.name, name, model.name, *configuration, repeat, "real" if model.real else "synthetic")
        for name in names or KINDS
        for model, plan in KINDS[name].plans(study)
        for configuration in plan
        for repeat in range(KINDS[name].repeats(model))
    ]


def job(study: Study, identity: Identity) -> Job:
    """Return what a measuring process gets: everything that its numbers depend on, and nothing else.

    It is the rule's parameter, so that a change of the config reruns exactly the jobs that it concerns; what a job may
    take is a resource of the rule instead.
    """
    kind, model = KINDS[identity.kind], study.model(identity.model)
    settings = kind.settings(study, model, identity.configuration)
    if identity.kind == "panel" and identity.repeat >= model.panels["minimum"]:
        settings["until"] = {
            "margin_percent": study.verdict["margin_percent"]["speed"],
            "minutes": study.speed["panels"]["minutes"],
            "minimum": model.panels["minimum"],
            "dense": [name for name in model.precisions if precisions.get(name).family == "dense"],
        }
    corpora = dict.fromkeys([*kind.text(study), study.prompt_corpus])
    return Job(
        identity=identity,
        module=kind.module,
        cases=kind.cases,
        device=study.device,
        threads=study.threads,
        model_folder=f"resources/models/{model.name}",
        checkpoints={
            name: f"resources/checkpoints/{model.name}/{name}"
            for one in members(study, identity)
            if (name := precisions.get(one.precision).checkpoint)
        }
        or None,
        corpora={name: f"resources/corpora/{name}" for name in corpora},
        prompt_corpus=study.prompt_corpus,
        # A job that got it without need would be measured again for another reference.
        reference_folder=reference_folder(study, model) if kind.logprobs else "",
        settings=settings,
        allocator=kind.allocator,
    )


def reference_folder(study: Study, model: Model) -> str:
    """Return the folder of a model's reference log-probabilities."""
    reference = Identity(study.name, "reference", model.name, *the_reference(study, model)[0])
    return f"resources/reference/{study.name}/{model.name}/{reference.name}"


def inputs(study: Study, identity: Identity) -> dict[str, str | list[str]]:
    """Return the files that a job reads, by name."""
    its = job(study, identity)
    files: dict[str, str | list[str]] = {
        "manifest": f"{its.model_folder}/manifest.json",
        "text": [f"{folder}/text.jsonl" for folder in its.corpora.values()],
    }
    if its.reference_folder and identity.kind != "reference":  # which makes it
        files["reference"] = its.reference_folder
    if its.checkpoints:
        files["checkpoints"] = [f"{folder}/manifest.json" for folder in its.checkpoints.values()]
    files |= {name: its.settings[name] for name in ("probe", "probes") if name in its.settings}
    if its.settings.get("until"):
        files["panels"] = [replace(identity, repeat=number).path for number in range(identity.repeat)]
    if identity.kind == "tasks":
        files |= {"tasks": f"resources/tasks/{study.name}.json", "files": task_files(study)}
    return files


def fetch_settings(study: Study, name: str, checkpoint: str | None = None) -> dict:
    """Return what fetching a model, or a published checkpoint beside it, depends on: its part of the config, and the
    files that a local folder holds now. Precisions count only as far as they are as-published alone."""
    entry = next(entry for entry in study.config["models"] if entry["name"] == name)
    settings = {key: entry[key] for key in ("name", "source", "context")}
    if checkpoint:
        settings |= {"name": f"{name}:{checkpoint}", "source": entry["checkpoints"][checkpoint]}
        settings["original"] = f"resources/models/{name}"
    elif study.model(name).precisions == PUBLISHED:
        settings["as_published"] = True
    return settings | {"files": layout.fingerprint(settings["source"])}


def fetched(study: Study) -> list[str]:
    """Return a line about each model that is fetched: what its checkpoint really is."""
    manifests = (fetched_manifest(entry) for entry in study.config["models"])
    return [f"{manifest['name']}: {manifest['summary']}" for manifest in manifests if manifest]


def task_files(study: Study) -> list[str]:
    """Return the task files that the study brings along."""
    folder = study.diagnostics["tasks"]["include_path"]
    return sorted(str(path) for path in Path(folder).rglob("*") if path.is_file()) if folder else []


def members(study: Study, identity: Identity) -> list[Configuration]:
    """Return the configurations that a job loads: all of its model for a panel, else its own."""
    if identity.kind == "panel":
        return configurations(study, study.model(identity.model))
    return [identity.configuration]


def modules(study: Study, identity: Identity) -> list[str]:
    """Return the modules below ``llmstudy`` that a job runs through, beside what they import."""
    chosen = [
        module
        for one in members(study, identity)
        for module in (precisions.module_of(one.precision), runtimes.module_of(one.runtime))
    ]
    return list(dict.fromkeys(["runner.child", KINDS[identity.kind].module, *chosen]))


def code_of(study: Study, identity: Identity) -> str:
    """Return the digest of the code that a job runs through, and its registry entries, which the digest omits."""
    loaded = members(study, identity)
    facts = [runtimes.facts(name) for name in dict.fromkeys(one.runtime for one in loaded)]
    kernels = [attention.get(name) for name in dict.fromkeys(one.attention for one in loaded)]
    return f"{code.digest(*modules(study, identity))} {facts + kernels}"


def start_order(study: Study, identity: Identity) -> int:
    """Return a priority that depends on the seed and the record alone.

    Probes come first and then the first panel, so that a first answer is there early. The rest starts in a random but
    repeatable order: what a machine does in the course of hours meets all panels of a model alike.
    """
    text = json.dumps([study.speed["order_seed"], asdict(identity)])
    early = {"probe": 2, "panel": int(identity.repeat == 0)}.get(identity.kind, 0)
    return (early << 24) + int.from_bytes(hashlib.sha256(text.encode()).digest()[:3], "big")


def weight_gib(study: Study, identity: Identity, precision: str) -> float:
    """Return the GiB that a model's weights take in a precision."""
    return study.model(identity.model).parameters * precisions.get(precision).weight_bits / 8 / GIB


def gpus(study: Study, identity: Identity) -> int:
    """Return the GPUs to request: none on a CPU, else as many as the weights need, of a panel the largest."""
    if study.device != "cuda":
        return 0
    size = max(weight_gib(study, identity, one.precision) for one in members(study, identity))
    return gpus_needed(size, study.jobs["gpu_memory_gib"])


def threads(study: Study, cores: int | None, at_once: int) -> int:
    """Return the cores to request: every one that this run of Snakemake may use, for a measurement has the machine
    alone; on GPUs their share of those that run at once."""
    return study.threads or max(1, (cores or 4) // (1 if study.device == "cpu" else max(1, at_once)))


def memory_mb(study: Study, identity: Identity, attempt: int = 1) -> int:
    """Return the host memory to request, MB, which grows with the attempt.

    On a CPU it holds libraries, the weights of all models that are loaded, a 16-bit copy and the file; on a GPU one
    shard at a time passes through.
    """
    sixteen_bit = weight_gib(study, identity, "bf16")
    if study.device == "cuda":
        needed = 6000 + 1024 * min(10.0, sixteen_bit)
    else:
        loaded = {(one.precision, attention.get(one.attention).implementation) for one in members(study, identity)}
        weights = sum(weight_gib(study, identity, precision) for precision, _ in sorted(loaded))
        needed = 2500 + 1024 * (weights + 2 * sixteen_bit)
    return int(needed * attempt)


def limit_seconds(study: Study) -> int:
    """Return the seconds after which a measurement is a timeout."""
    return math.ceil(60 * study.jobs["minutes"])


def runtime_minutes(study: Study) -> int:
    """Return the wall time to request: the limit that makes a timeout record, and five minutes to start and to write,
    at most that limit again. No more in a later attempt, whose limit is the same."""
    return math.ceil(study.jobs["minutes"] + min(5, study.jobs["minutes"]))


def check(study: Study, *wanted: str) -> None:
    """Raise StudyError where the kinds ``wanted``, or all, cannot be measured: sequences longer than a model's context,
    unknown models, missing folders."""
    names = [model.name for model in study.models]
    for kind in KINDS.values():
        check_known(f"{kind.key}.models", kind.section(study).get("models") or [], names)
    _check_diagnostics(study.diagnostics["capacity"], study.diagnostics["tasks"])
    for name in wanted or KINDS:
        for model, plan in KINDS[name].plans(study):
            # The lengths are the same in all configurations.
            settings = KINDS[name].settings(study, model, plan[0]) if plan else {}
            for key, tokens in sequences(settings):
                part = KINDS[name].settings_key or KINDS[name].key or name
                _check_context(f"{part}.{key}", tokens, model)


def _check_context(key: str, tokens: dict[str, int], model: Model) -> None:
    total = sum(tokens.values())
    if model.context and total > model.context:
        terms = " + ".join(f"{name} {number}" for name, number in tokens.items())
        terms += f" = {total} tokens" if len(tokens) > 1 else ""
        raise StudyError(f"{key}: {terms}, but model {model.name!r} has a context of {model.context} tokens")


def _check_diagnostics(capacity: dict, tasks: dict) -> None:
    verify, folder = capacity["verify"], tasks["include_path"]
    if verify["enabled"] and not capacity["enabled"]:
        raise StudyError(
            "diagnostics.capacity.verify.enabled: true without diagnostics.capacity.enabled; allowed: both or neither"
        )
    if verify["context"] not in (None, *capacity["contexts"]):
        key, allowed = "diagnostics.capacity.verify.context", ", ".join(map(str, capacity["contexts"]))
        raise StudyError(f"{key}: {verify['context']} is not predicted; allowed: {allowed}")
    if tasks["enabled"] and not tasks["tasks"]:
        raise StudyError(
            "diagnostics.tasks.tasks: [] names nothing to measure; allowed: names of tasks, for instance [arc_easy]"
        )
    if folder and not Path(folder).is_dir():
        raise StudyError(f"diagnostics.tasks.include_path: {folder!r} does not exist; allowed: a folder of task files")
