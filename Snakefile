"""Which precision should I run this LLaMA-family model in, on this hardware, and what do I lose?

Measures speed, memory and quality of a model in several precisions and renders REPORT.md.

    snakemake --cores 1                                  the default study, config/config.yaml
    snakemake --cores 1 --configfile config/<study>.yaml another study
    snakemake --profile slurm                            on a SLURM cluster, after editing slurm/config.yaml
    snakemake --cores 1 --config measure=nothing         tables and report from the records that are there
    snakemake -n                                         what would be done

Steps: fetch weights and text → measure speed, memory, quality and generated text, one process each → make CSV tables →
plot → render. See README.md, config/README.md for every key, and workflow/README.md for every rule.
"""

from snakemake.utils import min_version

min_version("9.0")


# A study of one's own stands alone: Snakemake would merge it key by key with this one, and what it leaves out would
# come from the default study instead of the schema.
if not workflow.overwrite_configfiles:

    configfile: f"{workflow.basedir}/config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/fetch.smk"


# Without these rules nothing measures: records stay as they are, however old they look.
if MEASURES:

    include: "workflow/rules/measure.smk"


include: "workflow/rules/tables.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        "REPORT.md",
        # Named although REPORT.md needs them: Snakemake does not ask whether the inputs of an existing target exist, and
        # a fresh clone has a REPORT.md and no results of its study.
        RECORDS,
        expand("{results}/{table}.csv", results=RESULTS, table=TABLES),
        f"{RESULTS}/first_answer.md",
        f"{RESULTS}/logs/outcome.txt",
