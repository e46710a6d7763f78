"""Make one table, or provenance.json, from records and other tables."""

from pathlib import Path

from llmstudy import tables
from llmstudy.runner import script
from llmstudy.tables import provenance

with script.step(snakemake.log[0]):  # noqa: F821 - Snakemake provides it
    sources, params, output = snakemake.input, snakemake.params, Path(snakemake.output[0])  # noqa: F821
    if params.get("config"):
        provenance.write(sources.records, params.missing, sources.manifests, params.config, params.headline, output)
    else:
        tables.make(
            params.table,
            records=sources.records,
            tables={Path(path).stem: Path(path) for path in sources.tables},
            study=params.study,
            output=output,
        )
