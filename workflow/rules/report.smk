"""
Turn tables into figures and REPORT.md.

REQUIRED INPUTS:
    results/<study>/records/…      for where the numbers come from
    results/<study>/*.csv          the tables of this study
    results/*/                     every other finished study: each has a section of its own in the report

OUTPUTS:
    results/<study>/provenance.json
    results/<study>/figures/<figure>.svg, .png
    REPORT.md

STEPS:
    1. aggregate_provenance   commit, versions and hardware of the records
    2. plot_<figure>          one rule per figure of llmstudy.figures whose tables the study has
    3. render_report          the templates of workflow/report, filled from the tables
"""

from glob import glob

from llmstudy.report import figures


localrules:
    aggregate_provenance,
    render_report,


PLANNED = [one.path(STUDY) for kind in plan.KINDS for one in plan.measurements(config, kind)]
PLANNED += [path for kind in extras.KINDS for path in extras.record_paths(config, kind)]
RECORDS = at_hand(PLANNED)
if not RECORDS:
    raise WorkflowError(f"measure: nothing, but {RESULTS}/records has no record of this study; allowed: all")
TABLES = ["speed", "memory", "quality", "generations", "text", "summary", "recommendation", *tabulated_extras()]
FIGURES = {name: entry for name, entry in figures.FIGURES.items() if set(entry.tables) <= set(TABLES)}
# What other studies left: read as it is, made by no rule here.
OTHER_STUDIES = [
    path
    for pattern in ("*.csv", "provenance.json", "figures/*.svg")
    for path in sorted(glob(f"results/*/{pattern}"))
    if not path.startswith(f"{RESULTS}/")
]


rule aggregate_provenance:
    input:
        library=dependencies.files("tables.provenance"),
        records=RECORDS,
        manifests=manifests(),
    output:
        # What it says of a model whose weights are not here stays.
        update(f"{RESULTS}/provenance.json"),
    log:
        f"{RESULTS}/logs/aggregate_provenance.log",
    conda:
        "../../envs/report.yaml"
    params:
        config=config,
        headline=plan.headline(config),
        missing=sorted(set(PLANNED) - set(RECORDS)),
    script:
        "../scripts/aggregate_provenance.py"


for figure, entry in FIGURES.items():

    rule:
        name:
            f"plot_{figure}"
        input:
            library=dependencies.files(f"report.figures.{figure}", "report.figures.plotting"),
            tables=expand(f"{RESULTS}/{{table}}.csv", table=entry.tables),
            provenance=f"{RESULTS}/provenance.json",
        output:
            svg=report(
                f"{RESULTS}/figures/{figure}.svg",
                caption=f"../report/captions/{figure}.rst",
                category=entry.category,
                labels={"name": entry.title},
            ),
            png=f"{RESULTS}/figures/{figure}.png",
        log:
            f"{RESULTS}/logs/plot_{figure}.log",
        localrule: True
        conda:
            "../../envs/report.yaml"
        params:
            figure=figure,
        script:
            "../scripts/plot_figure.py"


rule render_report:
    input:
        library=dependencies.files("report.render", *(f"report.figures.{figure}" for figure in FIGURES)),
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
    conda:
        "../../envs/report.yaml"
    params:
        lead=config["report"]["lead"],
        study=STUDY,
    script:
        "../scripts/render_report.py"
