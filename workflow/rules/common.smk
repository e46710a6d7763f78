"""
What all rules share: the completed study, and the functions that connect its measurements to wildcards. No rules here.

The work is done by pure functions in workflow/scripts/llmstudy: config.py (the study), kinds.py (its measurements).
"""

import sys
from glob import glob
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir) / "workflow" / "scripts"))

from llmstudy import code, kinds, tables
from llmstudy import config as study_config
from llmstudy.errors import StudyError
from llmstudy.runner import pool, slurm
from llmstudy.runner.job import Identity
from llmstudy.runner.script import isolate, plan
from snakemake.exceptions import WorkflowError

isolate(workflow.deployment_settings.deployment_method)
try:
    study = study_config.complete(config, workflow.configfiles)
    kinds.check(study)
except StudyError as error:
    raise WorkflowError(str(error))

# Whether this run may measure; no part of the study, so not of what is recorded of it.
MEASURES = study.config.pop("measure") != "nothing"
RESULTS = study.results
RECORD = "records/{kind}/{model}/{precision}.{attention}.{runtime}.r{repeat}"


def kinds_of(rule):
    """The kinds that a rule measures, as a pattern for the wildcard ``kind``."""
    return "|".join(name for name, kind in kinds.KINDS.items() if kind.rule == rule)


wildcard_constraints:
    study=study.name,
    kind="|".join(kinds.KINDS),
    model="[A-Za-z0-9._-]+",
    corpus="[A-Za-z0-9._-]+",
    precision="[A-Za-z0-9-]+([.][0-9]+)?",
    attention="[A-Za-z0-9_-]+",
    runtime="[A-Za-z0-9_-]+",
    repeat="[0-9]+",


def identity(wildcards):
    """The identity of the record that the wildcards name."""
    precision = wildcards.precision.replace("--", ":")  # as a file's name has it
    names = (wildcards.kind, wildcards.model, precision, wildcards.attention, wildcards.runtime)
    weights = "real" if study.model(wildcards.model).real else "synthetic"
    return Identity(study.name, *names, int(wildcards.repeat), weights)


def of_record(function):
    """The function of wildcards that asks ``function(study, identity)``."""
    return lambda wildcards: function(study, identity(wildcards))


def records(*names):
    """The paths of the records of some kinds or all; with ``measure: nothing`` those that exist, of older configs too."""
    planned = [one.path for one in kinds.records(study, *names)]
    if MEASURES:
        return planned
    patterns = [
        f"{RESULTS}/records/{name}/{model.name}/*.json" for name in names or kinds.KINDS for model in study.models
    ]
    found = {path for pattern in patterns for path in glob(pattern)}
    return [path for path in planned if path in found] + sorted(found.difference(planned))


def first_records():
    """The records of a first answer: the probes, and one panel of each model."""
    return [path for path in records("probe", "panel") if Path(path).parts[-3] == "probe" or path.endswith(".r0.json")]


def is_tabulated(name, table):
    """Whether the study has a table: each but those of diagnostics that are off, or that have no records at hand."""
    if name in kinds.KINDS and name not in study.diagnostics:  # a kind with a section of the config elsewhere
        return kinds.KINDS[name].enabled(study)
    if name not in study.diagnostics:
        return True
    at_hand = MEASURES or table.tables or records(*table.kinds)
    return study.diagnostics[name]["enabled"] and bool(at_hand)


def memory_mb(wildcards, attempt):
    """Host memory of a measuring job, MB."""
    return kinds.memory_mb(study, identity(wildcards), attempt)


def model_config(wildcards):
    """What fetching depends on: weights replaced in place too, and not precisions, note or license of their model."""
    return kinds.fetch_settings(study, wildcards.model, wildcards.get("checkpoint"))


def corpus_config(wildcards):
    """What fetching a corpus depends on."""
    return {key: study.corpus(wildcards.corpus)[key] for key in ("name", "source", "documents")}


onstart:
    # Only the Snakemake that submits comes here: no dry run, and no job on a compute node.
    needed = list(workflow.dag.needrun_jobs())
    try:
        study_config.check_paths(study, {str(output) for job in needed for output in job.output})
        if workflow.executor_plugin.name == "slurm":
            partitions = {job.resources.get("slurm_partition") for job in needed if not job.is_local}
            slurm.start(Path.cwd(), Path(workflow.basedir, "slurm", "bin"), partitions)
        elif workflow.executor_plugin.name == "local":
            pool.check_present(study.device, {job.rule.name for job in needed})
        plan(RESULTS, [str(output) for job in needed for output in job.output])
    except StudyError as error:
        raise WorkflowError(str(error))
