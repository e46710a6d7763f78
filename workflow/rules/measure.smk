"""
Measure one configuration per job. Every job writes a record whatever happens to the measurement.

REQUIRED INPUTS:
    resources/models/<model>/manifest.json
    resources/corpora/<corpus>/text.jsonl

OUTPUTS, below results/<study>/records/:
    latency/<model>/<precision>.<attention>.<runtime>.r<repeat>.json
    memory/<model>/<precision>.<attention>.<runtime>.r0.json
    quality/<model>/<precision>.<attention>.eager.r0.json and the per-token arrays beside it
    samples/<model>/<precision>.<attention>.eager.r0.json

STEPS:
    1. measure_latency   repeats are processes of their own, started in a seeded random order
    2. measure_memory    apart from latency, because reading memory disturbs timing
    3. keep_reference    the reference's log-probabilities, which the other precisions are compared with
    4. measure_quality   perplexity and distance to the reference
    5. generate_samples  greedy continuations

A measuring job takes every core that Snakemake may use: two at once would measure each other.
"""


rule measure_latency:
    input:
        library=library_of("speed"),
        source="resources/models/{model}/manifest.json",
        text=prompt_corpus,
    output:
        record=f"{RESULTS}/records/latency/{{model}}/{{precision}}.{{attention}}.{{runtime}}.r{{repeat}}.json",
    log:
        f"{RESULTS}/logs/measure_latency/{{model}}/{{precision}}.{{attention}}.{{runtime}}.r{{repeat}}.log",
    priority: latency_order
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
        job=job_of("speed"),
    script:
        "../scripts/measure_latency.py"


rule measure_memory:
    input:
        library=library_of("memory"),
        source="resources/models/{model}/manifest.json",
        text=prompt_corpus,
    output:
        record=f"{RESULTS}/records/memory/{{model}}/{{precision}}.{{attention}}.{{runtime}}.r{{repeat}}.json",
    log:
        f"{RESULTS}/logs/measure_memory/{{model}}/{{precision}}.{{attention}}.{{runtime}}.r{{repeat}}.log",
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
        job=job_of("memory"),
    script:
        "../scripts/measure_memory.py"


rule keep_reference:
    input:
        library=reference_library,
        source="resources/models/{model}/manifest.json",
        text=quality_texts,
    output:
        record=f"{RESULTS}/records/reference/{{model}}.json",
        # Not temp(): making them again for one more precision would repeat the quality of all the others.
        logprobs=expand(
            "resources/reference/{study}/{{model}}/{corpus}.logprobs.f16",
            study=STUDY,
            corpus=plan.quality_corpora(config),
        ),
        top5=expand(
            "resources/reference/{study}/{{model}}/{corpus}.top5.npy",
            study=STUDY,
            corpus=plan.quality_corpora(config),
        ),
    log:
        f"{RESULTS}/logs/keep_reference/{{model}}.log",
    conda:
        "../../envs/measure.yaml"
    threads: measuring_threads
    resources:
        attempt=attempt_number,
        mem_mb=reference_memory,
        runtime=measuring_minutes,
        gpu=reference_gpus,
        limit_s=LIMIT_S,
        oom_attempts=OOM_ATTEMPTS,
    params:
        job=reference_job,
    script:
        "../scripts/keep_reference.py"


rule measure_quality:
    input:
        library=library_of("quality"),
        source="resources/models/{model}/manifest.json",
        text=quality_texts,
        prompts=prompt_corpus,  # precisions that choose their columns do so on these
        reference=reference_files,
    output:
        record=f"{RESULTS}/records/quality/{{model}}/{{precision}}.{{attention}}.{{runtime}}.r{{repeat}}.json",
        arrays=f"{RESULTS}/records/quality/{{model}}/{{precision}}.{{attention}}.{{runtime}}.r{{repeat}}.npz",
    log:
        f"{RESULTS}/logs/measure_quality/{{model}}/{{precision}}.{{attention}}.{{runtime}}.r{{repeat}}.log",
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
        job=job_of("quality"),
    script:
        "../scripts/measure_quality.py"


rule generate_samples:
    input:
        library=library_of("generations"),
        source="resources/models/{model}/manifest.json",
        text=prompt_corpus,
    output:
        record=f"{RESULTS}/records/samples/{{model}}/{{precision}}.{{attention}}.{{runtime}}.r{{repeat}}.json",
    log:
        f"{RESULTS}/logs/generate_samples/{{model}}/{{precision}}.{{attention}}.{{runtime}}.r{{repeat}}.log",
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
        job=job_of("generations"),
    script:
        "../scripts/generate_samples.py"
