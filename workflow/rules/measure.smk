"""
Measure: one process and one record for each kind, model, configuration and repeat. llmstudy/kinds.py lists the kinds.

REQUIRED INPUTS:
    resources/models/<model>/manifest.json
    resources/corpora/<corpus>/text.jsonl
    resources/reference/<study>/<model>/…       for quality: the reference's log-probabilities
    results/<study>/records/probe/…             for panels: what runs, and fits together; for capacity: what it predicts from

OUTPUTS:
    results/<study>/records/<kind>/<model>/<precision>.<attention>.<runtime>.r<repeat>.json
    the same with .npz                           per token (quality) or per document (tasks)
    resources/reference/<study>/<model>/…        by measure_reference

STEPS:
    1. measure             probes, generated text and most diagnostics
       measure_time        panels after the probes, one after the other once enough may be known; diagnostics of time
    2. measure_reference   keep the reference's log-probabilities
    3. measure_quality     compare every precision with them
    4. measure_tasks       accuracy in tasks of lm-eval

A failed measurement is a record with a status and a reason. scripts/measure.py runs the job in a child process
(llmstudy/runner), which calls the kind's module in llmstudy/measure.
"""

# Measurements on GPUs that run beside each other: --resources gpu=N.
AT_ONCE = workflow.global_resources["gpu"].value if "gpu" in workflow.global_resources else 1


rule measure:
    input:
        unpack(of_record(kinds.inputs)),
    output:
        record=f"{RESULTS}/{RECORD}.json",
    log:
        f"{RESULTS}/logs/{RECORD}.log",
    wildcard_constraints:
        kind=kinds_of("measure"),
    priority: of_record(kinds.start_order)
    conda:
        "../../envs/measure.yaml"
    threads: kinds.threads(study, workflow.resource_settings.cores, AT_ONCE)
    resources:
        attempt=lambda wildcards, attempt: attempt,
        mem_mb=memory_mb,
        runtime=kinds.runtime_minutes(study),
        gpu=of_record(kinds.gpus),
        limit_s=kinds.limit_seconds(study),
        oom_attempts=study.jobs["oom_attempts"],
    params:
        job=lambda wildcards: kinds.job(study, identity(wildcards)).to_dict(),
        code=of_record(kinds.code_of),
    script:
        "../scripts/measure.py"


# A rule of its own because a cluster gives it a node without neighbours (slurm/config.yaml).
use rule measure as measure_time with:
    output:
        record=f"{RESULTS}/{RECORD}.json",
    wildcard_constraints:
        kind=kinds_of("measure_time"),


use rule measure as measure_reference with:
    output:
        record=f"{RESULTS}/{RECORD}.json",
        # Not temp(): making them again for one more precision would repeat the quality of all the others.
        logprobs=directory(
            f"resources/{{kind}}/{study.name}/{{model}}/{{precision}}.{{attention}}.{{runtime}}.r{{repeat}}"
        ),
    wildcard_constraints:
        kind=kinds_of("measure_reference"),


use rule measure as measure_quality with:
    output:
        record=f"{RESULTS}/{RECORD}.json",
        arrays=f"{RESULTS}/{RECORD}.npz",
    wildcard_constraints:
        kind=kinds_of("measure_quality"),


use rule measure as measure_tasks with:
    output:
        record=f"{RESULTS}/{RECORD}.json",
        arrays=f"{RESULTS}/{RECORD}.npz",
    wildcard_constraints:
        kind=kinds_of("measure_tasks"),
    conda:
        "../../envs/tasks.yaml"
