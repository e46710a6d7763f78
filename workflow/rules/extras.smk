"""
Tabulate what explains the study's main numbers. Each part runs only if the config's ``extras`` enable it.

REQUIRED INPUTS:
    results/<study>/records/<extra>/<model>/*.json
    results/<study>/processes.csv, memory.csv and the reference's quality record    for what is made of them

OUTPUTS, below results/<study>/:
    outliers.csv     LLM.int8()'s outlier ledger
    sweep.csv        LLM.int8() over outlier thresholds: quality beside decode time
    sensitivity.csv  loss when one part of the model is rounded to int8
    invariance.csv   dependence of a prompt's logits on its neighbours in the batch
    tasks.csv        accuracy in tasks of lm-eval, its change, and flips
    profile.csv      launches, synchronisations, device time and the limit of a decode step
    attention.csv    attention kernels alone over context lengths
    crossover.csv    where one configuration overtakes another
    capacity.csv     largest batch that fits the device, predicted and, where asked for, verified

STEPS:
    1. aggregate_extra, aggregate_sweep, aggregate_tasks    records into tables
    2. find_crossovers, predict_capacity                    tables out of other tables
"""


localrules:
    aggregate_extra,
    aggregate_sweep,
    aggregate_tasks,
    find_crossovers,
    predict_capacity,


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
        records=records_of_extra("sweep"),
        arrays=arrays(records_of_extra("sweep")),
        quality=sweep_references(),
        reference_arrays=arrays(sweep_references()),
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
        latency=f"{RESULTS}/processes.csv",
        kernels_alone=records_of_extra("attention"),
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
        references={model: spoken["reference"] for model, spoken in plan.headline(config).items()},
        attention=config["attention"][0],
        kernel=(config["extras"]["attention"]["kernels"] or config["attention"])[0],
    script:
        "../scripts/find_crossovers.py"


rule predict_capacity:
    input:
        library=dependencies.files("tables.capacity"),
        memory=f"{RESULTS}/memory.csv",
        records=records("memory"),
        verified=records_of_extra("capacity"),
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


rule aggregate_tasks:
    input:
        library=dependencies.files("tables.tasks"),
        records=records_of_extra("tasks"),
        arrays=arrays(records_of_extra("tasks")),
    output:
        report(
            f"{RESULTS}/tasks.csv",
            caption="../report/captions/table_tasks.rst",
            category="Tables",
            labels={"name": "tasks.csv"},
        ),
    log:
        f"{RESULTS}/logs/aggregate_tasks.log",
    conda:
        "../../envs/report.yaml"
    params:
        references={model: spoken["reference"] for model, spoken in plan.headline(config).items()},
    script:
        "../scripts/aggregate_tasks.py"
