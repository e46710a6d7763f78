"""Mermaid diagrams: how data flows through a study, drawn from its tables, and a model, drawn from its shape."""

from __future__ import annotations

from collections.abc import Iterable

from llmstudy.report.provenance import shape_of
from llmstudy.report.study import Study
from llmstudy.tables import every


def data_flow(study: Study) -> str:
    """Return how the tables of a study come from its records and from each other."""
    models, corpora = len(study.models), len(study.provenance["config"]["corpora"])
    lines = ["flowchart LR", f'  fetch["fetch<br>{_counted(models, "model")}, {_counted(corpora, "text")}"]']
    for name, table in every().items():
        if name not in study.tables:
            continue
        for kind in table.kinds:
            lines += [f'  fetch --> measure_{kind}["measure {kind}"]']
            lines += [f'  measure_{kind} -- "records" --> {name}[("{name}.csv")]']
        lines += [f'  {source} --> {name}[("{name}.csv")]' for source in table.tables if source in study.tables]
        lines.append(f"  {name} --> report")
    return _fenced(dict.fromkeys([*lines, '  report["figures and templates"] --> done(["REPORT.md"])']))


def architecture(studies: list[Study]) -> str | None:
    """Return the blocks of the first model whose shape is known; each linear layer's weight as outputs × inputs."""
    pairs = [(shape_of(study, model), model) for study in studies for model in study.models]
    shape, model = next(((shape, model) for shape, model in pairs if shape), (None, ""))
    if shape is None:
        return None
    hidden, inner, words, width = shape.hidden, shape.intermediate, shape.vocabulary, shape.head_dim
    q, kv = shape.heads * width, shape.kv_heads * width
    lines = [
        "flowchart TB",
        f'  tokens(["token ids"]) --> embedding["embedding {words} × {hidden}"] --> stream',
        f'  subgraph layer["decoder layer, {shape.layers} times"]',
        "    direction TB",
        '    stream["residual stream"] --> norm1["RMSNorm"] --> qkv',
        f'    qkv["q {q} × {hidden}; k, v {kv} × {hidden}"]',
        '    qkv --> rotary["rotary embedding"]',
        f'    rotary --> attention["{shape.heads} attention heads, {shape.kv_heads} key-value heads of {width}"]',
        f'    attention --> out["o {hidden} × {q}"] --> add1(("+"))',
        "    stream -.-> add1",
        '    add1 --> norm2["RMSNorm"]',
        f'    norm2 --> gate["gate, up {inner} × {hidden}"] --> silu["SiLU(gate) · up"]',
        f'    silu --> down["down {hidden} × {inner}"] --> add2(("+"))',
        "    add1 -.-> add2",
        "  end",
        '  add2 --> norm3["RMSNorm"]',
        f'  norm3 --> head["head {words} × {hidden}{" (the embedding again)" * shape.tied}"] --> logits(["logits"])',
    ]
    return (
        "The linear layers that a precision stores and multiplies are the boxes with two sizes, outputs × inputs, here "
        f"of `{model}`:\n\n{_fenced(lines)}"
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _fenced(lines: Iterable[str]) -> str:
    return "\n".join(["```mermaid", *lines, "```"])
