"""Mermaid diagrams: how data flows through a study, drawn from its tables, and a model, drawn from its config.json."""

from __future__ import annotations

from llmstudy.report.study import Study

# kind of record → (measuring rule, table)
MEASURED = {
    "processes": "measure_latency",
    "memory": "measure_memory",
    "quality": "measure_quality",
    "generations": "generate_samples",
}
# table → the tables or kinds that it is made of
DERIVED = {
    "summary": ("processes", "memory", "quality"),
    "text": ("generations",),
    "crossover": ("processes",),
    "capacity": ("memory",),
}
EXTRAS = ("outliers", "sweep", "sensitivity", "invariance", "profile", "attention")


def data_flow(study: Study) -> str:
    """From sources to REPORT.md: the steps and the tables that this study has."""
    models, corpora = len(study.models), len(study.provenance["config"]["corpora"])
    lines = [
        "flowchart LR",
        f'  weights["fetch_weights<br>{models} {plural(models, "model")}"]',
        f'  corpora["fetch_corpus<br>{corpora} {plural(corpora, "text")}"]',
    ]
    for table, rule in MEASURED.items():
        if table in study.tables:
            lines += [f'  {rule}["{rule}"]', f"  weights --> {rule}", f"  corpora --> {rule}"]
            lines += [f'  {rule} -- "records" --> {table}[("{table}.csv")]']
    if "quality" in study.tables:
        lines += ['  weights --> keep_reference["keep_reference"]', "  keep_reference --> measure_quality"]
    explained = [name for name in EXTRAS if name in study.tables]
    for table in explained:
        lines += [f'  weights --> extra["measure_extra, measure_sweep"] --> {table}[("{table}.csv")]']
    for table, sources in DERIVED.items():
        if table in study.tables:
            lines += [f'  {source} --> {table}[("{table}.csv")]' for source in sources if source in study.tables]
    shown = [name for name in (*MEASURED, *DERIVED, *explained) if name in study.tables]
    lines += [f"  {table} --> report" for table in shown]
    lines += ['  report["plot_* and render_report"] --> done(["REPORT.md"])']
    return fenced(dict.fromkeys(lines))


def known(studies: list[Study]) -> tuple[Study, str] | None:
    """The first model whose config.json was at hand."""
    pairs = ((study, model) for study in studies for model in study.models)
    return next((pair for pair in pairs if pair[0].provenance["models"][pair[1]]["architecture"]), None)


def architecture(study: Study, model: str) -> str:
    """The blocks of a LLaMA with the sizes of this one; each linear's weight as outputs × inputs."""
    shape = study.provenance["models"][model]["architecture"]
    hidden, heads = shape["hidden_size"], shape["num_attention_heads"]
    width = shape.get("head_dim") or hidden // heads
    kv_heads = shape.get("num_key_value_heads") or heads
    inner, words = shape["intermediate_size"], shape["vocab_size"]
    tied = " (the embedding again)" if shape.get("tie_word_embeddings") else ""
    return fenced(
        [
            "flowchart TB",
            f'  tokens(["token ids"]) --> embedding["embedding {words} × {hidden}"] --> stream',
            f'  subgraph layer["decoder layer, {shape["num_hidden_layers"]} times"]',
            "    direction TB",
            '    stream["residual stream"] --> norm1["RMSNorm"] --> qkv',
            f'    qkv["q {heads * width} × {hidden}; k, v {kv_heads * width} × {hidden}"]',
            '    qkv --> rotary["rotary embedding"]',
            f'    rotary --> attention["attention: {heads} heads, {kv_heads} key-value heads of {width}"]',
            f'    attention --> out["o {hidden} × {heads * width}"] --> add1(("+"))',
            "    stream -.-> add1",
            '    add1 --> norm2["RMSNorm"]',
            f'    norm2 --> gate["gate, up {inner} × {hidden}"] --> silu["SiLU(gate) · up"]',
            f'    silu --> down["down {hidden} × {inner}"] --> add2(("+"))',
            "    add1 -.-> add2",
            "  end",
            f'  add2 --> norm3["RMSNorm"] --> head["head {words} × {hidden}{tied}"] --> logits(["logits"])',
        ]
    )


def plural(count: int, noun: str) -> str:
    """A noun in the number that fits."""
    return noun if count == 1 else f"{noun}s"


def fenced(lines) -> str:
    """A block that GitHub draws."""
    return "\n".join(["```mermaid", *lines, "```"])
