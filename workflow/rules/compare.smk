"""
Compare two studies of the same configurations, for instance before and after a library upgrade:

    snakemake --cores 1 compare --config baseline=<study> candidate=<study>

REQUIRED INPUTS:
    results/<baseline>/processes.csv, memory.csv, quality.csv and the same of the candidate

OUTPUTS:
    results/comparisons/<baseline>_<candidate>.csv            every quantity that both have, and what changed for certain
    results/comparisons/<baseline>_<candidate>.failures.txt   a line for each change for the worse past its limit

STEPS:
    1. compare_studies  write both files
    2. compare          fail if there is a line in the second, after the table is safe
"""


localrules:
    compare_studies,
    compare,


COMPARISON = f"results/comparisons/{config['baseline']}_{config['candidate']}"


rule compare_studies:
    input:
        library=dependencies.files("tables.comparison"),
        tables=expand(
            "results/{study}/{table}.csv",
            study=[name for name in (config["baseline"], config["candidate"]) if name],
            table=["speed", "memory", "quality"],
        ),
    output:
        table=f"{COMPARISON}.csv",
        failures=f"{COMPARISON}.failures.txt",
    log:
        f"{COMPARISON}.log",
    conda:
        "../../envs/report.yaml"
    params:
        baseline=config["baseline"],
        candidate=config["candidate"],
        limits=config["compare"],
    script:
        "../scripts/compare_studies.py"


rule compare:
    input:
        failures=f"{COMPARISON}.failures.txt",
    log:
        f"{COMPARISON}.verdict.log",
    conda:
        "../../envs/report.yaml"
    script:
        "../scripts/compare.py"
