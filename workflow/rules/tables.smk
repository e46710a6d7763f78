"""
Turn records into tables: raw rows, then means and intervals, then the answer. llmstudy/tables lists the tables.

REQUIRED INPUTS:
    results/<study>/records/<kind>/<model>/*.json, *.npz

OUTPUTS, below results/<study>/:
    processes.csv, probes.csv, quality.csv, generations.csv   one observation a row, units in the column names
    speed.csv                                                 one row a configuration and workload, with intervals
    summary.csv                                               one row a configuration
    advice.csv                                                one row a use of a model: what to run, and the evidence
    <diagnostic>.csv                                          one for each diagnostic of the config
    provenance.json                                           commit, versions and hardware of the records

STEPS:
    1. tabulate_<table>   one rule for each table, from records and other tables
    2. provenance         where the numbers come from
"""

TABLES = {name: table for name, table in tables.every().items() if is_tabulated(name, table)}
PLANNED = [one.path for one in kinds.records(study)]
RECORDS = records()
MANIFESTS = [f"resources/models/{model.name}/manifest.json" for model in study.models]
MANIFESTS = [path for path in MANIFESTS if MEASURES or Path(path).exists()]
if not RECORDS:
    raise WorkflowError(f"measure: nothing, but {RESULTS}/records has no record of this study; allowed: all")


for name, table in TABLES.items():

    rule:
        name:
            f"tabulate_{name}"
        input:
            records=records(*table.kinds) if table.kinds else [],
            arrays=[str(Path(path).with_suffix(".npz")) for path in records(*table.kinds)] if table.arrays else [],
            tables=[f"{RESULTS}/{source}.csv" for source in table.tables],
        output:
            report(
                f"{RESULTS}/{name}.csv",
                category=table.category,
                labels={"name": f"{name}.csv", "row": table.title},
            ),
        log:
            f"{RESULTS}/logs/tabulate_{name}.log",
        localrule: True
        conda:
            "../../envs/report.yaml"
        params:
            table=name,
            study=study.for_tables(),
            code=code.digest("tables", table.module),
        script:
            "../scripts/make_table.py"


rule provenance:
    input:
        records=RECORDS,
        manifests=MANIFESTS,
    output:
        # What it says of a model whose weights are not here stays.
        update(f"{RESULTS}/provenance.json"),
    log:
        f"{RESULTS}/logs/provenance.log",
    localrule: True
    conda:
        "../../envs/report.yaml"
    params:
        config=study.config,
        headline=study.headline,
        missing=sorted(set(PLANNED) - set(RECORDS)),
        code=code.digest("tables.provenance"),
    script:
        "../scripts/make_table.py"
