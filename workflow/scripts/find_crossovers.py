"""Find where one configuration overtakes another: crossover.csv from processes.csv and attention records."""

from pathlib import Path

from llmstudy.runner import script as steps
from llmstudy.tables import crossover

with steps.step(snakemake.log[0]):  # noqa: F821 - Snakemake provides it
    crossover.write(
        Path(snakemake.input.latency),  # noqa: F821
        snakemake.input.kernels_alone,  # noqa: F821
        snakemake.params.references,  # noqa: F821
        snakemake.params.attention,  # noqa: F821
        snakemake.params.kernel,  # noqa: F821
        Path(snakemake.output[0]),  # noqa: F821
    )
