"""Roofline (Williams, Waterman, Patterson 2009): achieved operations against operations per byte.

Operations of a step: 2 per weight of the linears and head and row, and 4 · layers · heads · head width · context for
the scores and their product with the values. Bytes: weights and KV cache read once, the same for prefill; what spills
to memory in between is not counted, so a point lies at its best possible intensity.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from llmstudy.report import selection
from llmstudy.report.figures import style
from llmstudy.report.study import Study

HEADLINE = "○ decode   ▷ prefill   filled: runtime graph   line: copy bandwidth measured in the same jobs"
MARKERS = {"decode": "o", "prefill": ">"}


def rows(study: Study) -> pd.DataFrame:
    """Two rows (``phase``) per model, precision and runtime at its fastest attention: ``intensity``, ``tflops``."""
    measured = selection.over_repeats(study, selection.at_headline(study, "processes"))
    if measured.empty:
        return measured
    measured = selection.fastest(measured.assign(status="ok"), ["model", "precision", "runtime"])
    measured = measured.dropna(subset=["step_bytes", "bandwidth_gb_s"])
    points = [point for row in measured.to_dict("records") for point in _points(row, _shape(study, row["model"]))]
    return pd.DataFrame(points)


def matmul_weights(shape: dict) -> int:
    """Weights that every token is multiplied by: q, k, v, o, gate, up, down in each layer, and the head."""
    hidden, heads = shape["hidden_size"], shape["num_attention_heads"]
    width = shape.get("head_dim") or hidden // heads
    attention = 2 * hidden * width * (heads + shape["num_key_value_heads"])
    layer = attention + 3 * hidden * shape["intermediate_size"]
    return shape["num_hidden_layers"] * layer + shape["vocab_size"] * hidden


def attention_operations(shape: dict, context: float) -> float:
    """Operations of one query row over a context, all layers."""
    heads = shape["num_attention_heads"]
    width = shape.get("head_dim") or shape["hidden_size"] // heads
    return 4 * shape["num_hidden_layers"] * heads * width * context


def _shape(study: Study, model: str) -> dict:
    return study.provenance["models"][model]["architecture"]


def _points(row: dict, shape: dict) -> list[dict]:
    batch, prompt = row["batch"], row["prompt_tokens"]
    phases = {
        "decode": (1, prompt + row["new_tokens"] / 2, row["tpot_ms"]),
        "prefill": (prompt, (prompt + 1) / 2, row["ttft_ms"]),
    }
    points = []
    for phase, (tokens, context, ms) in phases.items():
        operations = batch * tokens * (2 * matmul_weights(shape) + attention_operations(shape, context))
        points.append(
            row | {"phase": phase, "intensity": operations / row["step_bytes"], "tflops": operations / ms / 1e9}
        )
    return points


def draw(rows: pd.DataFrame) -> Figure:
    """One panel per model."""
    return style.by_model(rows, 3.1, _panel, HEADLINE)


def _panel(axis, rows: pd.DataFrame) -> None:
    for row in style.sort(rows).itertuples():
        hue = style.colour(row.precision)
        fill = hue if row.runtime == "graph" else "none"
        axis.plot([row.intensity], [row.tflops], MARKERS[row.phase], color=hue, markerfacecolor=fill, markersize=6)
    bandwidth = rows["bandwidth_gb_s"].median() / 1e3
    ends = np.array([rows["intensity"].min() / 2, rows["tflops"].max() * 1.5 / bandwidth])
    axis.plot(ends, ends * bandwidth, color=style.INK, linewidth=1)
    axis.axhline(rows["tflops"].max(), color=style.INK, linewidth=0.8, linestyle=":")
    where = {"transform": axis.get_yaxis_transform(), "ha": "right", "va": "top", "fontsize": 8}
    axis.text(0.99, rows["tflops"].max() * 0.8, "highest achieved here", **where)
    style.plain_log(axis)
    style.plain_log(axis, "y")
    axis.grid(axis="both")
    axis.set_xlabel(f"operations per byte (bandwidth {bandwidth:.3g} TB/s)")
    axis.set_ylabel("TFLOP/s")
    axis.set_title(style.title(rows["model"].iloc[0], rows["weights"].iloc[0] == "synthetic"))
    decode = rows[rows["phase"] == "prefill"].drop_duplicates("precision")
    texts, hues = list(decode["precision"]), [style.colour(name) for name in decode["precision"]]
    style.label_right(axis, list(decode["intensity"]), list(decode["tflops"]), texts, hues)
