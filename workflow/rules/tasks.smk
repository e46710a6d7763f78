"""
Accuracy in tasks of lm-eval, and which answers change against the reference. Runs only if ``extras.tasks`` is enabled.

REQUIRED INPUTS:
    resources/models/<model>/manifest.json
    resources/corpora/<corpus>/text.jsonl          for precisions that choose their columns on text
    the files below extras.tasks.include_path      if the study has tasks of its own

OUTPUTS:
    resources/tasks/<study>.json                   what the tasks' data sets are; they lie in the cache of ``datasets``
    results/<study>/records/tasks/<model>/*.json   every document's answer, in the .npz beside it

STEPS:
    1. fetch_tasks      data sets into the cache; runs where Snakemake runs, because compute nodes often have no network
    2. measure_tasks    one record per model and precision, as in measure.smk

lm-eval has an environment of its own, because it brings some 35 packages that nothing else here needs.
"""


localrules:
    fetch_tasks,


rule fetch_tasks:
    input:
        library=dependencies.files("fetch.tasks"),
        files=task_files(),
    output:
        "resources/tasks/{study}.json",
    log:
        "results/{study}/logs/fetch_tasks.log",
    # Downloads fail for reasons that pass; what was fetched is kept.
    retries: 2
    conda:
        "../../envs/tasks.yaml"
    params:
        tasks={key: config["extras"]["tasks"][key] for key in ("tasks", "include_path")},
    script:
        "../scripts/fetch_tasks.py"


rule measure_tasks:
    input:
        library=library_of("tasks"),
        source="resources/models/{model}/manifest.json",
        prompts=prompt_corpus,
        files=task_files(),
        tasks=f"resources/tasks/{STUDY}.json",
    output:
        record=f"{RESULTS}/records/tasks/{{model}}/{{precision}}.{{attention}}.{{runtime}}.r{{repeat}}.json",
        arrays=f"{RESULTS}/records/tasks/{{model}}/{{precision}}.{{attention}}.{{runtime}}.r{{repeat}}.npz",
    log:
        f"{RESULTS}/logs/measure_tasks/{{model}}/{{precision}}.{{attention}}.{{runtime}}.r{{repeat}}.log",
    conda:
        "../../envs/tasks.yaml"
    threads: measuring_threads
    resources:
        attempt=attempt_number,
        mem_mb=measuring_memory,
        runtime=measuring_minutes,
        gpu=measuring_gpus,
        limit_s=LIMIT_S,
        oom_attempts=OOM_ATTEMPTS,
    params:
        job=job_of("tasks"),
    script:
        "../scripts/measure_tasks.py"
