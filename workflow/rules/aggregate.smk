"""
Turn records into tidy tables, and tables into a verdict.

REQUIRED INPUTS:
    results/<study>/records/<kind>/<model>/*.json

OUTPUTS, below results/<study>/:
    latency.csv, memory.csv, quality.csv, samples.csv    one observation a row, units in the column names
    summary.csv                                          one row per model × precision × attention × runtime
    recommendation.csv                                   one sentence per model

STEPS:
    1. aggregate_latency, aggregate_memory, aggregate_quality, aggregate_samples
    2. judge_precisions   better, worse, mixed or not distinguishable from the reference, and which one to take
"""


localrules:
    aggregate_latency,
    aggregate_memory,
    aggregate_quality,
    aggregate_samples,
    judge_precisions,


rule aggregate_latency:
    input:
        library=dependencies.files("tables.latency"),
        records=records("latency"),
    output:
        f"{RESULTS}/latency.csv",
    log:
        f"{RESULTS}/logs/aggregate_latency.log",
    conda:
        "../../envs/report.yaml"
    script:
        "../scripts/aggregate_latency.py"


rule aggregate_memory:
    input:
        library=dependencies.files("tables.memory"),
        records=records("memory"),
    output:
        f"{RESULTS}/memory.csv",
    log:
        f"{RESULTS}/logs/aggregate_memory.log",
    conda:
        "../../envs/report.yaml"
    script:
        "../scripts/aggregate_memory.py"


rule aggregate_quality:
    input:
        library=dependencies.files("tables.quality"),
        records=records("quality"),
    output:
        f"{RESULTS}/quality.csv",
    params:
        reference=config["reference"],
    log:
        f"{RESULTS}/logs/aggregate_quality.log",
    conda:
        "../../envs/report.yaml"
    script:
        "../scripts/aggregate_quality.py"


rule aggregate_samples:
    input:
        library=dependencies.files("tables.samples"),
        records=records("samples"),
    output:
        f"{RESULTS}/samples.csv",
    params:
        reference=config["reference"],
    log:
        f"{RESULTS}/logs/aggregate_samples.log",
    conda:
        "../../envs/report.yaml"
    script:
        "../scripts/aggregate_samples.py"


rule judge_precisions:
    input:
        library=dependencies.files("tables.summary"),
        latency=f"{RESULTS}/latency.csv",
        memory=f"{RESULTS}/memory.csv",
        quality=f"{RESULTS}/quality.csv",
    output:
        summary=f"{RESULTS}/summary.csv",
        recommendation=f"{RESULTS}/recommendation.csv",
    params:
        focus=plan.focus(config),
        limits=config["limits"],
        smallest=config["verdict"]["smallest_effect_percent"],
    log:
        f"{RESULTS}/logs/judge_precisions.log",
    conda:
        "../../envs/report.yaml"
    script:
        "../scripts/judge_precisions.py"
