"""
Turn tables into figures, REPORT.md and the details of the study.

REQUIRED INPUTS:
    results/<study>/*.csv, provenance.json
    results/*/                     every other finished study: a line in the report each

OUTPUTS:
    results/<study>/figures/<figure>.svg, .png      those for which the study has something to show
    results/<study>/first_answer.md                 its answer after the first panel
    results/<study>/details.md                      everything that the study measured
    REPORT.md                                       its answer
    results/<study>/logs/outcome.txt                how many records of each model are ok

STEPS:
    1. plot             all figures; what a study measured decides which there are
    2. first_answer     a table of what the first panel says
       render_report    the templates of workflow/report, filled from the tables
    3. check_outcome    end with an error if no measurement of a model succeeded
"""

from glob import glob
from os.path import relpath

from llmstudy.report import figures

# Other studies' results: read as they are, made by no rule here.
OTHER_STUDIES = [
    path
    for pattern in ("*.csv", "provenance.json")
    for path in sorted(glob(f"results/*/{pattern}"))
    if not path.startswith(f"{RESULTS}/")
]
# From where Snakemake works, which --directory may change; the same in every checkout otherwise.
TEMPLATES = relpath(f"{workflow.basedir}/workflow/report")
DRAWN_FROM = {table for figure in figures.FIGURES.values() for table in figure.tables}


rule plot:
    input:
        tables=expand(f"{RESULTS}/{{table}}.csv", table=[name for name in TABLES if name in DRAWN_FROM]),
        provenance=f"{RESULTS}/provenance.json",
    output:
        report(
            directory(f"{RESULTS}/figures"),
            patterns=["{figure}.svg"],
            caption="../report/figure.rst",
            category=lambda wildcards: figures.FIGURES[wildcards.figure].category,
            labels=lambda wildcards: {"name": figures.FIGURES[wildcards.figure].title},
        ),
    log:
        f"{RESULTS}/logs/plot.log",
    localrule: True
    conda:
        "../../envs/report.yaml"
    params:
        captions={name: figures.caption(name) for name in figures.FIGURES},
        code=code.digest("report.figures", *sorted({figure.module for figure in figures.FIGURES.values()})),
    script:
        "../scripts/plot_figures.py"


# The answer after the probes and one panel of each model, which start first: printed, and kept beside the tables.
rule first_answer:
    input:
        records=first_records(),
        manifests=MANIFESTS,
    output:
        f"{RESULTS}/first_answer.md",
    log:
        f"{RESULTS}/logs/first_answer.log",
    priority: 100_000_000
    localrule: True
    conda:
        "../../envs/report.yaml"
    params:
        settings=study.for_tables(),
        config=study.config,
        code=code.digest("report.render", *(tables.TABLES[name].module for name in ("speed", "advice"))),
    script:
        "../scripts/render_report.py"


rule render_report:
    input:
        templates=glob(f"{TEMPLATES}/**/*.j2", recursive=True),
        captions=glob(f"{TEMPLATES}/captions/*.rst"),
        tables=expand(f"{RESULTS}/{{table}}.csv", table=TABLES),
        provenance=f"{RESULTS}/provenance.json",
        figures=f"{RESULTS}/figures",
        others=OTHER_STUDIES,
    output:
        report=update("REPORT.md"),
        details=f"{RESULTS}/details.md",
    log:
        f"{RESULTS}/logs/render_report.log",
    localrule: True
    conda:
        "../../envs/report.yaml"
    params:
        study=study.name,
        code=code.digest("report.render"),
    script:
        "../scripts/render_report.py"


# Fails, and again in each later run, while a model has no result; what was made stays.
rule check_outcome:
    input:
        records=RECORDS,
        rendered=f"{RESULTS}/details.md",
    output:
        f"{RESULTS}/logs/outcome.txt",
    log:
        f"{RESULTS}/logs/check_outcome.log",
    retries: 0
    localrule: True
    conda:
        "../../envs/report.yaml"
    params:
        code=code.digest("tables.outcome"),
    script:
        "../scripts/check_outcome.py"
