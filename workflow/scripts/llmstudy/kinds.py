"""The one registry of measurements: which records a study needs, what each job gets, how its records are tabulated.

A kind is one entry of ``KINDS``: everything that handles records (rules, GPU lock, child process, tables, report) asks
here. Standard library only, so that the workflow can be parsed without the packages that measure.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from llmstudy import code, runtimes
from llmstudy.config import Model, Study, check_known
from llmstudy.errors import StudyError
from llmstudy.models import attention, precisions
from llmstudy.runner.job import Identity, Job, sequences

GIB = 2**30
Configuration = tuple[str, str, str]  # precision, attention, runtime


@dataclass(frozen=True)
class Kind:
    """One kind of measurement.

    Attributes:
        title: heading of its section in the report.
        module: the measuring module below ``llmstudy``.
        plan: (study, model) → the configurations that are measured, each in a process.
        settings: (study, model, configuration) → the job's settings, plain values.
        table: the module below ``llmstudy`` that turns its records into the table of its name, where ``tables.TABLES``
            has none that reads them.
        key: the part of the config that switches the kind on with ``enabled``; empty for what every study measures.
        real_only: whether it needs real weights: random ones have no outliers like a trained model's, and no loss
            worth comparing.
        alone: whether another process on the same GPU would falsify it.
        cases: the key of the results whose entries have a status each.
        text: (study) → the corpora that it reads; prompts and calibration text are always there.
        logprobs: whether it keeps the reference's log-probabilities or compares with them.
        repeats: (model) → the number of processes for each configuration.
        rule: the rule that measures it: ``measure``, or one that has more outputs.
        allocator: settings of PyTorch's CUDA allocator.
    """

    title: str
    module: str
    plan: Callable[[Study, Model], list[Configuration]]
    settings: Callable[[Study, Model, Configuration], dict]
    table: str = ""
    key: str = ""
    real_only: bool = False
    alone: bool = False
    cases: str = ""
    text: Callable[[Study], list[str]] = lambda study: []
    logprobs: bool = False
    repeats: Callable[[Model], int] = lambda model: 1
    rule: str = "measure"
    allocator: str | None = None

    def section(self, study: Study) -> dict:
        """Return the part of the config that switches the kind on."""
        section = study.config
        for name in self.key.split(".") if self.key else ():
            section = section[name]
        return section

    def enabled(self, study: Study) -> bool:
        """Return whether the study asks for the kind."""
        return not self.key or self.section(study)["enabled"]

    def models(self, study: Study) -> list[Model]:
        """Return the models that the kind is measured on."""
        some = self.section(study).get("models") if self.key else None
        return [
            model
            for model in study.models
            if (model.real or not self.real_only) and (some is None or model.name in some)
        ]


def configurations(study: Study, model: Model) -> list[Configuration]:
    """Return every precision × runtime × attention kernel of a model."""
    return [
        (precision, kernel, runtime)
        for precision in model.precisions
        for runtime in model.runtimes
        for kernel in runtimes.kernels_of(runtime, study.attention)
    ]


def each_precision(study: Study, model: Model) -> list[Configuration]:
    """Return every precision of a model under quality's attention kernel."""
    return [(name, study.quality_attention, runtimes.BASE) for name in model.precisions]


def graded_precisions(study: Study, model: Model) -> list[Configuration]:
    """Return every precision whose quality is measured."""
    names = dict.fromkeys([*model.precisions, *study.quality_only])
    return [(name, study.quality_attention, runtimes.BASE) for name in names]


def the_reference(study: Study, model: Model) -> list[Configuration]:
    """Return the reference under quality's attention kernel."""
    return [(model.reference, study.quality_attention, runtimes.BASE)]


def profiled(study: Study, model: Model) -> list[Configuration]:
    """Return one attention kernel of each precision and runtime: quality's where it is measured, else the first."""
    chosen: dict[tuple[str, str], Configuration] = {}
    for one in configurations(study, model):
        if (one[0], one[2]) not in chosen or one[1] == study.quality_attention:
            chosen[one[0], one[2]] = one
    return list(chosen.values())


def every_kernel(study: Study, model: Model) -> list[Configuration]:
    """Return each attention kernel, in 16 bit: no weights are loaded."""
    kernels = study.diagnostics["attention"]["kernels"] or study.attention
    return [("bf16", name, runtimes.BASE) for name in kernels]


def quality_settings(study: Study, model: Model, configuration: Configuration) -> dict:
    """Return the settings of quality."""
    keys = ("protocols", "bos", "documents", "tokens_per_document", "max_tokens", "kl_tokens")
    shared = {"corpora": study.quality_corpora, "reference": model.reference}
    return shared | {key: study.quality[key] for key in keys}


def reference_settings(study: Study, model: Model, configuration: Configuration) -> dict:
    """Return the settings of the reference; the first protocol alone is compared token by token."""
    settings = quality_settings(study, model, configuration)
    return settings | {"protocols": settings["protocols"][:1]}


def speed_settings(study: Study, model: Model, configuration: Configuration) -> dict:
    """Return the settings of speed."""
    keys = ("warmup", "minimum_runs", "minimum_seconds")
    return {"workloads": list(model.workloads)} | {key: study.speed[key] for key in keys}


def diagnostic(name: str) -> Callable[[Study, Model, Configuration], dict]:
    """Return the function that gives a diagnostic its keys of the config."""

    def settings(study: Study, model: Model, configuration: Configuration) -> dict:
        section = study.diagnostics[name]
        return {key: value for key, value in section.items() if key not in ("enabled", "kernels", "models")}

    return settings


def windowed(name: str, corpus: Callable[[Study], str]) -> Callable[[Study, Model, Configuration], dict]:
    """Return the same for a diagnostic that reads text, in disjoint windows of the first protocol's length."""

    def settings(study: Study, model: Model, configuration: Configuration) -> dict:
        window = study.quality["protocols"][0]["window"]
        text = {"bos": study.quality["bos"], "corpus": corpus(study), "max_tokens": None}
        protocol = {"protocol": {"window": window, "stride": window}}
        return diagnostic(name)(study, model, configuration) | text | protocol

    return settings


def capacity_settings(study: Study, model: Model, configuration: Configuration) -> dict:
    """Return the settings of the verification of capacity, which is around what a memory record predicts."""
    capacity = study.diagnostics["capacity"]
    context = capacity["verify"]["context"]
    return {
        "contexts": [context] if context else capacity["contexts"],
        "device_gib": capacity["device_gib"],
        "memory_record": Identity(study.name, "memory", model.name, *configuration).path,
    }


def first_quality_corpus(study: Study) -> list[str]:
    """Return the corpus that quality begins with."""
    return study.quality_corpora[:1]


KINDS = {
    "speed": Kind(
        "Speed",
        "measure.speed",
        configurations,
        speed_settings,
        alone=True,
        cases="workloads",
        repeats=lambda model: model.repeats,
        rule="measure_time",
    ),
    "memory": Kind(
        "Memory",
        "measure.memory",
        configurations,
        lambda study, model, configuration: {"workloads": list(model.memory_workloads)},
        alone=True,
        cases="workloads",
    ),
    "reference": Kind(
        "Reference",
        "measure.reference",
        the_reference,
        reference_settings,
        real_only=True,
        text=lambda study: study.quality_corpora,
        logprobs=True,
        rule="measure_reference",
    ),
    "quality": Kind(
        "Quality",
        "measure.quality",
        graded_precisions,
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
    "outliers": Kind(
        "Outlier statistics",
        "measure.diagnostics.outliers",
        the_reference,
        windowed("outliers", lambda study: study.prompt_corpus),
        key="diagnostics.outliers",
        real_only=True,
    ),
    "sensitivity": Kind(
        "Sensitivity to rounding",
        "measure.diagnostics.sensitivity",
        the_reference,
        windowed("sensitivity", lambda study: study.quality_corpora[0]),
        key="diagnostics.sensitivity",
        real_only=True,
        text=first_quality_corpus,
    ),
    "invariance": Kind(
        "Batch invariance",
        "measure.diagnostics.invariance",
        each_precision,
        diagnostic("invariance"),
        key="diagnostics.invariance",
        real_only=True,
        cases="batches",
    ),
    "profile": Kind(
        "Where a decode step's time goes",
        "measure.diagnostics.profile",
        profiled,
        diagnostic("profile"),
        key="diagnostics.profile",
        alone=True,
        rule="measure_time",
    ),
    "attention": Kind(
        "Attention kernels alone",
        "measure.diagnostics.attention",
        every_kernel,
        diagnostic("attention"),
        key="diagnostics.attention",
        alone=True,
        cases="points",
        rule="measure_time",
    ),
    "tasks": Kind(
        "Tasks",
        "measure.diagnostics.tasks",
        each_precision,
        diagnostic("tasks"),
        key="diagnostics.tasks",
        real_only=True,
        cases="tasks",
        rule="measure_tasks",
    ),
    # The model predicts what is allocated. By default the allocator splits blocks and cannot give the parts back, up to
    # a fifth of an H200 after a long prefill, so that no model of the workload alone says what fits.
    "capacity": Kind(
        "Capacity",
        "measure.diagnostics.capacity",
        configurations,
        capacity_settings,
        key="diagnostics.capacity.verify",
        alone=True,
        allocator="expandable_segments:True",
    ),
}


def records(study: Study, *names: str) -> list[Identity]:
    """Return the identity of every record that the study needs, of the kinds ``names`` or of all."""
    return [
        Identity(study.name, name, model.name, *one, repeat, "real" if model.real else "synthetic")
        for name in names or KINDS
        if KINDS[name].enabled(study)
        for model in KINDS[name].models(study)
        for one in KINDS[name].plan(study, model)
        for repeat in range(KINDS[name].repeats(model))
    ]


def job(study: Study, identity: Identity) -> Job:
    """Return what a measuring process gets: everything that its numbers depend on, and nothing else. It is the rule's
    parameter, so that a change of the config reruns exactly the jobs that it concerns; what a job may take is a
    resource of the rule instead."""
    kind, model = KINDS[identity.kind], study.model(identity.model)
    configuration = (identity.precision, identity.attention, identity.runtime)
    corpora = dict.fromkeys([*kind.text(study), study.prompt_corpus])
    return Job(
        identity=identity,
        module=kind.module,
        cases=kind.cases,
        alone=kind.alone,
        device=study.device,
        threads=study.threads,
        model_folder=f"resources/models/{model.name}",
        corpora={name: f"resources/corpora/{name}" for name in corpora},
        prompt_corpus=study.prompt_corpus,
        # A job that got it without need would be measured again for another reference.
        reference_folder=reference_folder(study, model) if kind.logprobs else "",
        settings=kind.settings(study, model, configuration),
        allocator=kind.allocator,
    )


def reference_folder(study: Study, model: Model) -> str:
    """Return the folder of a model's reference log-probabilities."""
    return f"resources/reference/{study.name}/{model.name}/{_reference(study, model).name}"


def _reference(study: Study, model: Model) -> Identity:
    return Identity(study.name, "reference", model.name, *the_reference(study, model)[0])


def inputs(study: Study, identity: Identity) -> dict[str, str | list[str]]:
    """Return the files that a job reads, by name."""
    one = job(study, identity)
    found: dict[str, str | list[str]] = {
        "manifest": f"{one.model_folder}/manifest.json",
        "text": [f"{folder}/text.jsonl" for folder in one.corpora.values()],
    }
    if identity.kind == "quality":
        found["reference"] = one.reference_folder
    if "memory_record" in one.settings:
        found["memory"] = one.settings["memory_record"]
    if identity.kind == "tasks":
        found |= {"tasks": f"resources/tasks/{study.name}.json", "files": task_files(study)}
    return found


def task_files(study: Study) -> list[str]:
    """Return the task files that the study brings along."""
    folder = study.diagnostics["tasks"]["include_path"]
    return sorted(str(path) for path in Path(folder).rglob("*") if path.is_file()) if folder else []


def modules(identity: Identity) -> list[str]:
    """Return the modules below ``llmstudy`` that a job runs through, beside what they import."""
    own = [precisions.module_of(identity.precision), runtimes.module_of(identity.runtime)]
    return ["runner.child", KINDS[identity.kind].module, *own]


def code_of(identity: Identity) -> str:
    """Return the digest of the code that a job runs through, and its entries in the registries, which the digest leaves
    out."""
    facts = runtimes.facts(identity.runtime), attention.get(identity.attention)
    return f"{code.digest(*modules(identity))} {facts}"


def start_order(study: Study, identity: Identity) -> int:
    """Return a priority from the seed and the record alone: jobs start in a random but repeatable order, so that a
    machine that warms up or slows down does not favor one precision."""
    text = json.dumps([study.speed["order_seed"], asdict(identity)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:3], "big")


def weight_gib(study: Study, identity: Identity, precision: str) -> float:
    """Return the GiB that a model's weights take in a precision."""
    return study.model(identity.model).parameters * precisions.get(precision).weight_bits / 8 / GIB


def gpus(study: Study, identity: Identity) -> int:
    """Return the GPUs to request: none on a CPU, else as many as hold 1.2 × the weights."""
    if study.device != "cuda":
        return 0
    size = weight_gib(study, identity, identity.precision)
    return max(1, math.ceil(1.2 * size / study.jobs["gpu_memory_gib"]))


def memory_mb(study: Study, identity: Identity, attempt: int = 1) -> int:
    """Return the host memory to request, MB: 2.5 GB for the libraries, and on a CPU the weights in the precision beside
    a 16-bit and a file copy; on a GPU one shard at a time passes through. Grows with the attempt."""
    sixteen_bit = weight_gib(study, identity, "bf16")
    if study.device == "cuda":
        needed = 6000 + 1024 * min(10.0, sixteen_bit)
    else:
        needed = 2500 + 1024 * (weight_gib(study, identity, identity.precision) + 2 * sixteen_bit)
    return int(needed * attempt)


def limit_seconds(study: Study) -> int:
    """Return the seconds after which a measurement is a timeout."""
    return math.ceil(60 * study.jobs["minutes"])


def runtime_minutes(study: Study, attempt: int = 1) -> int:
    """Return the wall time to request: the limit that makes a timeout record, and five minutes to write it."""
    return math.ceil((study.jobs["minutes"] + 5) * attempt)


def check(study: Study, *wanted: str) -> None:
    """Raise StudyError for a mistake in what the kinds ``wanted``, or all, are asked to measure: sequences longer than
    a model's context, unknown models, missing folders."""
    names = [model.name for model in study.models]
    for kind in KINDS.values():
        if kind.key:
            check_known(f"{kind.key}.models", kind.section(study).get("models") or [], names)
    _check_capacity(study.diagnostics["capacity"])
    _check_tasks(study.diagnostics["tasks"])
    for identity in _one_each(records(study, *wanted)):
        model = study.model(identity.model)
        for name, tokens in sequences(job(study, identity).settings) if model.context else ():
            if sum(tokens.values()) > model.context:
                terms = " + ".join(f"{key} {number}" for key, number in tokens.items())
                total = f" = {sum(tokens.values())} tokens" if len(tokens) > 1 else ""
                key = KINDS[identity.kind].key or identity.kind
                raise StudyError(
                    f"{key}.{name}: {terms}{total}, but model {model.name!r} has a context of {model.context} tokens"
                )


def _one_each(identities: Iterable[Identity]) -> Iterator[Identity]:
    """Yield one identity of each kind and model: their settings do not depend on the configuration."""
    seen = set()
    for identity in identities:
        if (key := (identity.kind, identity.model)) not in seen:
            seen.add(key)
            yield identity


def _check_tasks(tasks: dict) -> None:
    if tasks["enabled"] and not tasks["tasks"]:
        raise StudyError(
            "diagnostics.tasks.tasks: [] names nothing to measure; allowed: names of tasks, for instance [arc_easy]"
        )
    if tasks["include_path"] and not Path(tasks["include_path"]).is_dir():
        raise StudyError(
            f"diagnostics.tasks.include_path: {tasks['include_path']!r} does not exist; allowed: a folder of task files"
        )


def _check_capacity(capacity: dict) -> None:
    verify = capacity["verify"]
    if verify["enabled"] and not capacity["enabled"]:
        raise StudyError(
            "diagnostics.capacity.verify.enabled: true without diagnostics.capacity.enabled; allowed: both or neither"
        )
    if verify["context"] not in (None, *capacity["contexts"]):
        allowed = ", ".join(map(str, capacity["contexts"]))
        raise StudyError(
            f"diagnostics.capacity.verify.context: {verify['context']} is not predicted; allowed: {allowed}"
        )
