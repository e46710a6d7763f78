"""Fetch a model's weights and tokenizer, verified, as safetensors."""

from pathlib import Path

from llmstudy.fetch.models import fetch_weights
from llmstudy.runner import script as steps

with steps.step(snakemake.log[0]):  # noqa: F821 - Snakemake provides it
    fetch_weights(snakemake.params.model, Path(snakemake.output[0]).parent, Path("resources/downloads"))  # noqa: F821
