"""
What all rules share: the completed config, the list of records, and the functions that rules name. No rules here.

The work is done by pure functions in workflow/scripts/llmstudy/plan.py; these only connect them to wildcards.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir) / "workflow" / "scripts"))

from llmstudy import code as dependencies, extras, plan
from llmstudy.runner import slurm
from llmstudy import config as study_config
from llmstudy.errors import StudyError
from snakemake.exceptions import WorkflowError

try:
    config = study_config.complete(config)
    extras.check(config)
except StudyError as error:
    raise WorkflowError(str(error))

# Whether this run may measure; not of the study, so not of what is recorded of it.
MEASURES = config.pop("measure") == "all"
STUDY = config["study"]
RESULTS = f"results/{STUDY}"
LIMIT_S = plan.limit_seconds(config)
OOM_ATTEMPTS = config["jobs"]["oom_attempts"]


wildcard_constraints:
    study=STUDY,
    model="[A-Za-z0-9_-]+",
    corpus="[A-Za-z0-9_-]+",
    precision="[A-Za-z0-9-]+",
    attention="[A-Za-z0-9_-]+",
    runtime="[a-z]+",
    repeat="[0-9]+",
    table="[a-z]+",
    extra="outliers|sensitivity|invariance|profile|attention",
    threshold="[0-9.]+|inf",


def measurement(kind, wildcards):
    """The measurement that a record's wildcards name."""
    return plan.Measurement(
        kind,
        wildcards.model,
        wildcards.precision,
        wildcards.attention,
        wildcards.runtime,
        int(wildcards.repeat),
    )


def at_hand(paths):
    """Of files that measuring needs or leaves all, or without measuring those that are there."""
    return [path for path in paths if MEASURES or Path(path).exists()]


def arrays(paths):
    """The per-token arrays beside records."""
    return [str(Path(path).with_suffix(".npz")) for path in paths]


def records(kind):
    """The paths of all records of a kind."""
    return at_hand(one.path(STUDY) for one in plan.measurements(config, kind))


def records_of_extra(kind):
    """The paths of all records of an extra; none if the study does not ask for it."""
    return at_hand(extras.record_paths(config, kind))


def reference(wildcards):
    """The measurement that keeps a model's reference log-probabilities."""
    return plan.Measurement("reference", wildcards.model, config["reference"], plan.quality_attention(config), "generate")


def measuring_threads(wildcards):
    """A measurement has the machine to itself: it takes every core that this run of Snakemake may use."""
    return config["threads"] or workflow.resource_settings.cores or 4


def attempt_number(wildcards, attempt):
    """Which submission of the job this is."""
    return attempt


def measuring_minutes(wildcards, attempt):
    """Wall time of a measuring job."""
    return plan.runtime_minutes(config, attempt)


def model_config(wildcards):
    """What fetching a model depends on; a change of its precisions, note or licence fetches nothing."""
    entry = plan.model_entry(config, wildcards.model)
    return {key: entry[key] for key in ("name", "source", "context")}


def corpus_config(wildcards):
    """What fetching a corpus depends on."""
    entry = next(corpus for corpus in config["corpora"] if corpus["name"] == wildcards.corpus)
    return {key: entry[key] for key in ("name", "source", "documents")}


def prompt_corpus(wildcards):
    """The text that prompts are taken from."""
    return f"resources/corpora/{plan.prompt_corpus(config)}/text.jsonl"


def quality_texts(wildcards):
    """The texts that quality is measured on."""
    return [f"resources/corpora/{name}/text.jsonl" for name in plan.quality_corpora(config)]


def reference_files(wildcards, corpora=plan.quality_corpora(config)):
    """What the reference leaves of some corpora for the other precisions of a model."""
    folder = plan.reference_folder(config, wildcards.model)
    return [f"{folder}/{name}{suffix}" for name in corpora for suffix in (".logprobs.f16", ".top5.npy")]


def job_of(kind):
    """The function that says what a job of a kind is told."""

    def told(wildcards):
        one = measurement(kind, wildcards)
        return extras.job(config, one) if kind in extras.KINDS else plan.job(config, one)

    return told


def library_of(kind):
    """The function that says which library files a job of a kind runs through."""

    def files(wildcards):
        return plan.library_files(measurement(kind, wildcards))

    return files


def reference_job(wildcards):
    """What the job that keeps the reference's log-probabilities is told."""
    return plan.job(config, reference(wildcards))


def reference_library(wildcards):
    """The library files that the reference job runs through."""
    return plan.library_files(reference(wildcards))


def measuring_memory(wildcards, attempt):
    """Host memory of a measuring job, MB; kinds need about the same."""
    return plan.memory_mb(config, measurement("speed", wildcards), attempt)


def measuring_gpus(wildcards):
    """GPUs of a measuring job."""
    return plan.gpus(config, measurement("speed", wildcards))


def reference_memory(wildcards, attempt):
    """Host memory of the job that keeps the reference, MB."""
    return plan.memory_mb(config, reference(wildcards), attempt)


def reference_gpus(wildcards):
    """GPUs of the job that keeps the reference."""
    return plan.gpus(config, reference(wildcards))


def latency_order(wildcards):
    """Random but repeatable start order."""
    return plan.start_order(config, measurement("speed", wildcards))


def extra_records(wildcards):
    """The paths of all records of the extra that the wildcards name."""
    return records_of_extra(wildcards.extra)


def extra_job(wildcards):
    """What a job of the extra that the wildcards name is told."""
    return job_of(wildcards.extra)(wildcards)


def extra_library(wildcards):
    """The library files that a job of the extra that the wildcards name runs through."""
    return library_of(wildcards.extra)(wildcards)


def extra_text(wildcards):
    """The text that a job of the extra that the wildcards name reads."""
    return f"resources/corpora/{extras.corpus(config, wildcards.extra)}/text.jsonl"


def extra_table_library(wildcards):
    """The library files that the table of an extra is made with."""
    return dependencies.files(f"tables.{wildcards.extra}")


def task_files():
    """The files of the tasks that the study brings itself."""
    folder = config["extras"]["tasks"]["include_path"]
    return sorted(str(path) for path in Path(folder).rglob("*") if path.is_file()) if folder else []


def tabulated_extras():
    """The extras that have a table: those that the study asks for, without measuring those that have a record."""
    derived = ("crossover", "capacity")  # made of other tables
    return [name for name in extras.enabled(config) if MEASURES or name in derived or records_of_extra(name)]


def sweep(wildcards):
    """The measurement of a sweep, at whatever threshold."""
    return plan.Measurement("sweep", wildcards.model, extras.SWEPT, wildcards.attention, "generate")


def sweep_job(wildcards):
    """What the job of one threshold is told."""
    return extras.sweep_job(config, sweep(wildcards), wildcards.threshold)


def sweep_text(wildcards):
    """The text of a sweep: where quality begins."""
    return f"resources/corpora/{extras.corpus(config, 'sweep')}/text.jsonl"


def sweep_reference_files(wildcards):
    """What the reference leaves for a sweep."""
    return reference_files(wildcards, [extras.corpus(config, "sweep")])


def sweep_library(wildcards):
    """The library files that a sweep's jobs run through."""
    return plan.library_files(sweep(wildcards))


def manifests():
    """What fetching says of the models; without measuring of those that are here."""
    return at_hand(f"resources/models/{model['name']}/manifest.json" for model in config["models"])


def sweep_references():
    """The quality records of the reference, which a sweep is paired with."""
    return at_hand(
        one.path(STUDY) for one in plan.measurements(config, "quality") if one.precision == config["reference"]
    )


def sweep_memory(wildcards, attempt):
    """Host memory of a sweep's job, MB."""
    return plan.memory_mb(config, sweep(wildcards), attempt)


def sweep_gpus(wildcards):
    """GPUs of a sweep's job."""
    return plan.gpus(config, sweep(wildcards))


onstart:
    # Only the Snakemake that submits comes here: no dry run, and no job on a compute node.
    needed = list(workflow.dag.needrun_jobs())
    try:
        study_config.check_paths(config, {str(output) for job in needed for output in job.output})
        if workflow.executor_plugin.name == "slurm":
            slurm.check_nothing_queued(Path.cwd())
            slurm.check_partitions({job.resources.get("slurm_partition") for job in needed if not job.is_local})
    except StudyError as error:
        raise WorkflowError(str(error))
