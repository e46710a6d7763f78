"""Which precision should I run this LLaMA-family model in, on this hardware, and what do I lose?

Measures speed, memory and quality of a model in several precisions and renders REPORT.md.

    snakemake --cores 1                                  the default study, config/config.yaml
    snakemake --cores 1 --configfile config/<study>.yaml another study
    snakemake --profile slurm                            on a SLURM cluster, after editing slurm/config.yaml
    snakemake --cores 1 --config measure=nothing         tables and report from the records that are there
    snakemake -n                                         what would be done

Steps: fetch weights and text → measure latency, memory, quality and samples, one process each → aggregate into CSV
tables → plot → judge → render. See README.md, and config/README.md for every key.
"""

from snakemake.utils import min_version

min_version("9.0")


# A study of one's own stands alone: Snakemake would merge it key by key with this one, and what it leaves out would
# come from the default study instead of the schema.
if not workflow.overwrite_configfiles:

    configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/weights.smk"


# Without these rules records are what they are: nothing makes them, however old they look.
if MEASURES:

    include: "workflow/rules/measure.smk"
    include: "workflow/rules/measure_extras.smk"
    include: "workflow/rules/tasks.smk"


include: "workflow/rules/aggregate.smk"
include: "workflow/rules/extras.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/compare.smk"


rule all:
    default_target: True
    input:
        "REPORT.md",
        # Named although REPORT.md needs them: of a target that is there Snakemake does not ask whether what it was
        # made of is there too, and a fresh clone has a REPORT.md and no results of its own.
        RECORDS,
        expand("{results}/{table}.csv", results=RESULTS, table=TABLES),
