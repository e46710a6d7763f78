"""
Turn tables into figures and REPORT.md.

REQUIRED INPUTS:
    results/<study>/*.csv, provenance.json
    results/*/                     every other finished study: each has a section in the report

OUTPUTS:
    results/<study>/figures/<figure>.svg, .png
    REPORT.md

STEPS:
    1. plot_<figure>    one rule for each figure whose tables the study has
    2. render_report    the templates of workflow/report, filled from the tables
"""

from glob import glob

from llmstudy.report import figures

FIGURES = {name: figure for name, figure in figures.FIGURES.items() if set(figure.tables) <= set(TABLES)}
# Other studies' results: read as they are, made by no rule here.
OTHER_STUDIES = [
    path
    for pattern in ("*.csv", "provenance.json", "figures/*.svg")
    for path in sorted(glob(f"results/*/{pattern}"))
    if not path.startswith(f"{RESULTS}/")
]


for name, figure in FIGURES.items():

    rule:
        name:
            f"plot_{name}"
        input:
            tables=expand(f"{RESULTS}/{{table}}.csv", table=figure.tables),
            provenance=f"{RESULTS}/provenance.json",
        output:
            svg=report(
                f"{RESULTS}/figures/{name}.svg",
                caption=f"../report/captions/{name}.rst",
                category=figure.category,
                labels={"name": figure.title},
            ),
            png=f"{RESULTS}/figures/{name}.png",
        log:
            f"{RESULTS}/logs/plot_{name}.log",
        localrule: True
        conda:
            "../../envs/report.yaml"
        params:
            figure=name,
            code=code.digest(figure.module),
        script:
            "../scripts/plot_figure.py"


rule render_report:
    input:
        templates=glob("workflow/report/**/*.j2", recursive=True),
        captions=glob("workflow/report/captions/*.rst"),
        tables=expand(f"{RESULTS}/{{table}}.csv", table=TABLES),
        provenance=f"{RESULTS}/provenance.json",
        figures=expand(f"{RESULTS}/figures/{{figure}}.svg", figure=FIGURES),
        others=OTHER_STUDIES,
    output:
        update("REPORT.md"),
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
