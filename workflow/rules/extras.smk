"""
Measure and tabulate what explains the study's main numbers. Each part runs only if the config's ``extras`` enable it.

REQUIRED INPUTS:
    resources/models/<model>/SOURCE.json
    resources/corpora/<corpus>/text.jsonl
    results/<study>/latency.csv, memory.csv and the reference's quality record    for what is made of them

OUTPUTS, below results/<study>/:
    outliers.csv     LLM.int8()'s outlier ledger
    sweep.csv        LLM.int8() over outlier thresholds: quality beside decode time
    sensitivity.csv  loss when one part of the model is rounded to int8
    invariance.csv   dependence of a prompt's logits on its neighbours in the batch
    profile.csv      launches, synchronisations, device time and the limit of a decode step
    attention.csv    attention kernels alone over context lengths
    crossover.csv    where one configuration overtakes another
    capacity.csv     largest batch that fits the device, predicted and, where asked for, verified

STEPS:
    1. measure_extra, measure_sweep       one record per job, as in measure.smk
       verify_capacity                    the same, around what its memory record predicts
    2. aggregate_extra, aggregate_sweep   records into tables
    3. find_crossovers, predict_capacity  tables out of other tables
"""


localrules:
    aggregate_extra,
    aggregate_sweep,
    find_crossovers,
    predict_capacity,


rule measure_extra:
    input:
        library=extra_library,
        source="resources/models/{model}/SOURCE.json",
        text=quality_texts,
        prompts=prompt_corpus,
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
    params:
        job=extra_job,
    script:
        "../scripts/measure_extra.py"


rule measure_sweep:
    input:
        library=sweep_library,
        source="resources/models/{model}/SOURCE.json",
        text=quality_texts,
        prompts=prompt_corpus,
        reference=reference_files,
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
    params:
        job=sweep_job,
    script:
        "../scripts/measure_sweep.py"


rule verify_capacity:
    input:
        library=capacity_library,
        source="resources/models/{model}/SOURCE.json",
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
    params:
        job=capacity_job,
    script:
        "../scripts/verify_capacity.py"


rule aggregate_extra:
    input:
        library=extra_table_library,
        records=extra_records,
    output:
        report(
            f"{RESULTS}/{{extra}}.csv",
            caption="../report/captions/table_extra.rst",
            category="Explanations",
            labels={"name": "{extra}.csv"},
        ),
    log:
        f"{RESULTS}/logs/aggregate_{{extra}}.log",
    conda:
        "../../envs/report.yaml"
    script:
        "../scripts/aggregate_extra.py"


rule aggregate_sweep:
    input:
        library=dependencies.files("tables.sweep"),
        records=sweep_records(),
        quality=sweep_references(),
    output:
        report(
            f"{RESULTS}/sweep.csv",
            caption="../report/captions/table_extra.rst",
            category="Explanations",
            labels={"name": "sweep.csv"},
        ),
    log:
        f"{RESULTS}/logs/aggregate_sweep.log",
    conda:
        "../../envs/report.yaml"
    params:
        reference=config["reference"],
    script:
        "../scripts/aggregate_sweep.py"


rule find_crossovers:
    input:
        library=dependencies.files("tables.crossover"),
        latency=f"{RESULTS}/latency.csv",
        kernels_alone=[one.path(STUDY) for one in extras.measurements(config, "attention")],
    output:
        report(
            f"{RESULTS}/crossover.csv",
            caption="../report/captions/table_extra.rst",
            category="Explanations",
            labels={"name": "crossover.csv"},
        ),
    log:
        f"{RESULTS}/logs/find_crossovers.log",
    conda:
        "../../envs/report.yaml"
    params:
        references={model: spoken["reference"] for model, spoken in plan.focus(config).items()},
        attention=config["attention"][0],
        kernel=(config["extras"]["attention"]["kernels"] or config["attention"])[0],
    script:
        "../scripts/find_crossovers.py"


rule predict_capacity:
    input:
        library=dependencies.files("tables.capacity"),
        memory=f"{RESULTS}/memory.csv",
        records=records("memory"),
        verified=capacity_records(),
    output:
        report(
            f"{RESULTS}/capacity.csv",
            caption="../report/captions/table_extra.rst",
            category="Explanations",
            labels={"name": "capacity.csv"},
        ),
    log:
        f"{RESULTS}/logs/predict_capacity.log",
    conda:
        "../../envs/report.yaml"
    params:
        contexts=config["extras"]["capacity"]["contexts"],
        device_gib=config["extras"]["capacity"]["device_gib"],
    script:
        "../scripts/predict_capacity.py"
