"""attention.csv: one row per attention kernel, context and phase; the kernel alone, not the model.

``time_ms`` is the median over repeats, ``time_low_ms`` and ``time_high_ms`` their range. ``tflops`` (prefill) counts
4 · heads · head dimension · n² / 2 operations whatever the kernel really computes; ``gb_s`` (decode) counts keys and
values read once. ``extra_mib`` is the peak on top of the inputs (CUDA only); ``max_abs_error`` is against textbook
attention in fp32 on the same inputs; ``kernel`` is what the profiler saw.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

from llmstudy.measure.flops import causal_attention_flops
from llmstudy.tables.columns import SHARED
from llmstudy.tables.common import identity, read_records, write_table

VALUE_BYTES = 2  # inputs are bf16
MIB = 2**20
COLUMNS = [
    *SHARED,
    "context",
    "phase",
    "prompt_tokens",
    "time_ms",
    "time_low_ms",
    "time_high_ms",
    "tflops",
    "gb_s",
    "extra_mib",
    "max_abs_error",
    "kernel",
    "heads",
    "kv_heads",
    "head_dim",
]


def write(paths: list[str], output: Path) -> None:
    """Aggregate attention records."""
    rows = [row for record in read_records(paths) for row in rows_of(record)]
    write_table(rows, COLUMNS, output)


def rows_of(record: dict) -> list[dict]:
    """A row for every context and phase that the record was asked for, measured or not."""
    results = record["results"]
    points = {(point["context"], point["phase"]): point for point in results.get("points", [])}
    shape = {key: results.get(key) for key in ("heads", "kv_heads", "head_dim")}
    rows = []
    for context in record["settings"]["contexts"]:
        for phase in ("prefill", "decode"):
            point = points.get((context, phase))
            row = identity(record, point) | shape | {"context": context, "phase": phase}
            row["prompt_tokens"] = context if phase == "prefill" else None
            if point and point["status"] == "ok":
                row |= timing(point, results)
            rows.append(row)
    return rows


def timing(point: dict, shape: dict) -> dict:
    """The columns of one measured point."""
    time_ms = median(point["time_ms"])
    columns = {
        "time_ms": time_ms,
        "time_low_ms": min(point["time_ms"]),
        "time_high_ms": max(point["time_ms"]),
        "extra_mib": None if point["extra_bytes"] is None else point["extra_bytes"] / MIB,
        "max_abs_error": point["max_abs_error"],
        "kernel": "; ".join(point["kernels"]),
    }
    if point["phase"] == "prefill":
        operations = causal_attention_flops(shape["heads"], shape["head_dim"], point["context"])
        return columns | {"tflops": operations / (time_ms / 1e3) / 1e12}
    read = 2 * shape["kv_heads"] * point["context"] * shape["head_dim"] * VALUE_BYTES
    return columns | {"gb_s": read / (time_ms / 1e3) / 1e9}
