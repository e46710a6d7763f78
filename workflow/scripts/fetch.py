"""Fetch a model's weights, a corpus, or the data sets of tasks: whichever the rule's parameters name."""

import sys
from pathlib import Path

from llmstudy.runner import script

told = ""
with script.step(snakemake.log[0]):  # noqa: F821 - Snakemake provides it
    asked, target, downloads = snakemake.params, Path(snakemake.output[0]), Path("resources/downloads")  # noqa: F821
    if asked.get("model"):
        from llmstudy.fetch import manifest
        from llmstudy.fetch.models import fetch_weights

        script.retrying(fetch_weights, asked.model, target.parent, downloads)
        print(manifest.read(target.parent)["summary"], file=sys.__stderr__)
    elif asked.get("corpus"):
        from llmstudy.fetch.corpora import fetch_corpus

        told = script.retrying(fetch_corpus, asked.corpus, target.parent, downloads)
    else:
        from llmstudy.fetch.tasks import fetch_tasks

        script.retrying(fetch_tasks, asked.tasks["tasks"], asked.tasks["include_path"], target)
if told:
    print(told, file=sys.stderr)
