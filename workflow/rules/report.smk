"""
Turn tables into REPORT.md.

REQUIRED INPUTS:
    results/<study>/*.csv, provenance.json     of this study
    results/*/…                                of every other finished study: each has a section of its own

OUTPUTS:
    results/<study>/provenance.json
    REPORT.md

STEPS:
    1. aggregate_provenance   commit, versions and hardware of the records
    2. render_report          the templates of workflow/report, filled from the tables
"""

from glob import glob


localrules:
    aggregate_provenance,
    render_report,


MEASURED = [path for kind in ("latency", "memory", "quality", "samples") for path in records(kind)]
TABLES = [
    f"{RESULTS}/{table}.csv" for table in ("latency", "memory", "quality", "samples", "summary", "recommendation")
]
OTHER_STUDIES = sorted(set(glob("results/*/*.csv") + glob("results/*/provenance.json")) - set(glob(f"{RESULTS}/*")))


rule aggregate_provenance:
    input:
        library=dependencies.files("tables.provenance"),
        records=MEASURED,
        receipts=expand("resources/models/{model}/SOURCE.json", model=[model["name"] for model in config["models"]]),
    output:
        f"{RESULTS}/provenance.json",
    log:
        f"{RESULTS}/logs/aggregate_provenance.log",
    conda:
        "../../envs/report.yaml"
    params:
        config=config,
        focus=plan.focus(config),
    script:
        "../scripts/aggregate_provenance.py"


rule render_report:
    input:
        library=dependencies.files("rendering.report"),
        templates=glob("workflow/report/**/*.j2", recursive=True),
        tables=TABLES,
        provenance=f"{RESULTS}/provenance.json",
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
