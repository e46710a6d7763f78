"""Fetch a corpus as one document a row."""

from pathlib import Path

from llmstudy import sources, steps

with steps.step(snakemake.log[0]):  # noqa: F821 - Snakemake provides it
    sources.fetch_corpus(snakemake.params.corpus, Path(snakemake.output[0]).parent, Path("resources/downloads"))  # noqa: F821
