"""Fetch a corpus as one document a row."""

from pathlib import Path

from llmstudy.fetch.corpora import fetch_corpus
from llmstudy.runner import script as steps

with steps.step(snakemake.log[0]):  # noqa: F821 - Snakemake provides it
    fetch_corpus(snakemake.params.corpus, Path(snakemake.output[0]).parent, Path("resources/downloads"))  # noqa: F821
