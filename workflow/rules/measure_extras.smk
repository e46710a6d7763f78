"""
Measure what explains the study's main numbers. Each part runs only if the config's ``extras`` enable it.

REQUIRED INPUTS:
    resources/models/<model>/manifest.json
    resources/corpora/<corpus>/text.jsonl

OUTPUTS, below results/<study>/records/:
    outliers, sensitivity, invariance, profile, attention    one file per model, precision, attention and runtime
    sweep                                                    one per threshold
    capacity                                                 one per memory record

STEPS:
    1. measure_extra, measure_sweep       one record per job, as in measure.smk
       verify_capacity                    the same, around what its memory record predicts
"""


rule measure_extra:
    input:
        library=extra_library,
        source="resources/models/{model}/manifest.json",
        text=extra_text,
    output:
        record=f"{RESULTS}/records/{{extra}}/{{model}}/{{precision}}.{{attention}}.{{runtime}}.r{{repeat}}.json",
    log:
        f"{RESULTS}/logs/measure_extra/{{extra}}/{{model}}/{{precision}}.{{attention}}.{{runtime}}.r{{repeat}}.log",
    conda:
        "../../envs/measure.yaml"
    threads: measuring_threads
    resources:
        attempt=attempt_number,
        mem_mb=measuring_memory,
        runtime=measuring_minutes,
        gpu=measuring_gpus,
        limit_s=LIMIT_S,
        oom_attempts=OOM_ATTEMPTS,
    params:
        job=extra_job,
    script:
        "../scripts/measure_extra.py"


rule measure_sweep:
    input:
        library=sweep_library,
        source="resources/models/{model}/manifest.json",
        text=sweep_text,
        prompts=prompt_corpus,
        reference=sweep_reference_files,
    output:
        record=f"{RESULTS}/records/sweep/{{model}}/{extras.SWEPT}.{{attention}}.eager.t{{threshold}}.json",
        arrays=f"{RESULTS}/records/sweep/{{model}}/{extras.SWEPT}.{{attention}}.eager.t{{threshold}}.npz",
    log:
        f"{RESULTS}/logs/measure_sweep/{{model}}/{extras.SWEPT}.{{attention}}.eager.t{{threshold}}.log",
    conda:
        "../../envs/measure.yaml"
    threads: measuring_threads
    resources:
        attempt=attempt_number,
        mem_mb=sweep_memory,
        runtime=measuring_minutes,
        gpu=sweep_gpus,
        limit_s=LIMIT_S,
        oom_attempts=OOM_ATTEMPTS,
    params:
        job=sweep_job,
    script:
        "../scripts/measure_sweep.py"


rule verify_capacity:
    input:
        library=library_of("capacity"),
        source="resources/models/{model}/manifest.json",
        text=prompt_corpus,
        memory=f"{RESULTS}/records/memory/{{model}}/{{precision}}.{{attention}}.{{runtime}}.r{{repeat}}.json",
    output:
        record=f"{RESULTS}/records/capacity/{{model}}/{{precision}}.{{attention}}.{{runtime}}.r{{repeat}}.json",
    log:
        f"{RESULTS}/logs/verify_capacity/{{model}}/{{precision}}.{{attention}}.{{runtime}}.r{{repeat}}.log",
    conda:
        "../../envs/measure.yaml"
    threads: measuring_threads
    resources:
        attempt=attempt_number,
        mem_mb=measuring_memory,
        runtime=measuring_minutes,
        gpu=measuring_gpus,
        limit_s=LIMIT_S,
        oom_attempts=OOM_ATTEMPTS,
    params:
        job=job_of("capacity"),
    script:
        "../scripts/verify_capacity.py"
