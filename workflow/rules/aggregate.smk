"""
Turn records into tidy tables, and tables into a verdict.

REQUIRED INPUTS:
    results/<study>/records/<kind>/<model>/*.json

OUTPUTS, below results/<study>/:
    processes.csv, memory.csv, quality.csv, generations.csv    one observation a row, units in the column names
    summary.csv                                          one row per model × precision × attention × runtime
    text.csv                                             one row per configuration: agreement of its samples' text
    recommendation.csv                                   one sentence per model

STEPS:
    1. aggregate_latency, aggregate_memory, aggregate_quality, aggregate_samples
    2. aggregate_text     generations.csv, its prompts taken together
    3. judge_precisions   better, worse, mixed or not distinguishable from the reference, and which one to take
"""


localrules:
    aggregate_latency,
    aggregate_memory,
    aggregate_quality,
    aggregate_samples,
    aggregate_text,
    judge_precisions,


rule aggregate_latency:
    input:
        library=dependencies.files("tables.processes"),
        records=records("speed"),
    output:
        report(
            f"{RESULTS}/processes.csv",
            caption="../report/captions/table_latency.rst",
            category="Tables",
            labels={"name": "processes.csv"},
        ),
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
        report(
            f"{RESULTS}/memory.csv",
            caption="../report/captions/table_memory.rst",
            category="Tables",
            labels={"name": "memory.csv"},
        ),
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
        arrays=arrays(records("quality")),
    output:
        report(
            f"{RESULTS}/quality.csv",
            caption="../report/captions/table_quality.rst",
            category="Tables",
            labels={"name": "quality.csv"},
        ),
    log:
        f"{RESULTS}/logs/aggregate_quality.log",
    conda:
        "../../envs/report.yaml"
    params:
        reference=config["reference"],
    script:
        "../scripts/aggregate_quality.py"


rule aggregate_samples:
    input:
        library=dependencies.files("tables.generations"),
        records=records("generations"),
    output:
        report(
            f"{RESULTS}/generations.csv",
            caption="../report/captions/table_samples.rst",
            category="Tables",
            labels={"name": "generations.csv"},
        ),
    log:
        f"{RESULTS}/logs/aggregate_samples.log",
    conda:
        "../../envs/report.yaml"
    params:
        reference=config["reference"],
    script:
        "../scripts/aggregate_samples.py"


rule aggregate_text:
    input:
        library=dependencies.files("tables.text"),
        samples=f"{RESULTS}/generations.csv",
    output:
        report(
            f"{RESULTS}/text.csv",
            caption="../report/captions/table_text.rst",
            category="Tables",
            labels={"name": "text.csv"},
        ),
    log:
        f"{RESULTS}/logs/aggregate_text.log",
    conda:
        "../../envs/report.yaml"
    params:
        reference=config["reference"],
    script:
        "../scripts/aggregate_text.py"


rule judge_precisions:
    input:
        library=dependencies.files("tables.summary"),
        latency=f"{RESULTS}/processes.csv",
        memory=f"{RESULTS}/memory.csv",
        quality=f"{RESULTS}/quality.csv",
    output:
        summary=report(
            f"{RESULTS}/summary.csv",
            caption="../report/captions/table_summary.rst",
            category="Answer",
            labels={"name": "summary.csv"},
        ),
        recommendation=report(
            f"{RESULTS}/recommendation.csv",
            caption="../report/captions/table_recommendation.rst",
            category="Answer",
            labels={"name": "recommendation.csv"},
        ),
    log:
        f"{RESULTS}/logs/judge_precisions.log",
    conda:
        "../../envs/report.yaml"
    params:
        headline=plan.headline(config),
        limits=config["limits"],
        smallest=config["verdict"]["smallest_effect_percent"],
    script:
        "../scripts/judge_precisions.py"
