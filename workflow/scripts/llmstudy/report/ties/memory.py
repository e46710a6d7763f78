"""Sentences from memory.csv: weights, KV cache, what does not fit, and what the score matrix of attention costs."""

from llmstudy.report.ties.rows import (
    PLACE,
    UNQUANTISED,
    Tables,
    attention_pair,
    good_rows,
    leading,
    link,
    of_kind,
    paired,
    place,
    workload,
)
from llmstudy.tables.columns import WORKLOAD
from llmstudy.tables.phrases import number

_KIB_PER_GIB = 2**20
DENSE = ("bf16", "fp16", "fp32")


def weights_memory(tables: Tables) -> str | None:
    """GiB of weights of the largest model in an unquantised precision, next to its KV cache."""
    frame = good_rows(tables, "memory", *WORKLOAD, "weights_gib", "kv_cache_gib")
    row = leading(of_kind(frame, UNQUANTISED), "-weights_gib", "-kv_cache_gib")
    if row is None:
        return None
    return (
        f"Measured ({place(row)}): the `{row.precision}` weights occupy {number(row.weights_gib)} GiB, the KV cache of "
        f"{workload(row)} {number(row.kv_cache_gib)} GiB ({link(row, 'memory')})."
    )


def kv_cache(tables: Tables) -> str | None:
    """For each model, measured 16-bit KV-cache bytes per token and sequence, at the longest workload."""
    frame = good_rows(tables, "memory", *WORKLOAD, "kv_cache_gib")
    frame = frame[frame["precision"].isin(["bf16", "fp16"]) & (frame["kv_cache_gib"].astype(float) > 0)]
    parts = []
    for model in frame["model"].unique():
        row = leading(frame[frame["model"] == model], "-prompt_tokens", "-batch")
        tokens = row.batch * (row.prompt_tokens + row.new_tokens)
        kib = number(row.kv_cache_gib * _KIB_PER_GIB / tokens)
        parts.append(f"{kib} KiB ({place(row)}, {workload(row)}, {link(row, 'memory')})")
    return f"Measured 16-bit cache per token and sequence: {'; '.join(parts)}." if parts else None


def does_not_fit(tables: Tables) -> str | None:
    """A workload at which an unquantised precision ended as ``oom`` while a quantised one ran on the same device."""
    fits = good_rows(tables, "memory", *WORKLOAD, "weights_gib")
    fits = fits[~fits["precision"].isin(DENSE)]
    if fits.empty:
        return None
    frame = tables["memory"]
    failed = frame[(frame["status"] == "oom") & frame["precision"].isin(DENSE)]
    keys = [*PLACE, *WORKLOAD, "runtime"]
    both = failed[[*keys, "precision"]].drop_duplicates().merge(fits, on=keys, suffixes=("", "_other"))
    row = leading(both, "-weights_gib")
    if row is None:
        return None
    return (
        f"Measured ({place(row)}, `{row.runtime}` runtime, {workload(row)}): `{row.precision}` ends as `oom`, "
        f"`{row.precision_other}` runs with {number(row.weights_gib)} GiB of weights ({link(row, 'memory')})."
    )


def int8_memory(tables: Tables) -> str | None:
    """GiB of weights in int8 as a share of the 16-bit weights of the same model."""
    frame = good_rows(tables, "memory", "weights_gib").assign(runtime="any")
    sixteen_bit, eight_bit = [("bf16", "any"), ("fp16", "any")], [("int8-fused", "any"), ("llm-int8", "any")]
    row = leading(paired(frame, [*PLACE, "accelerator"], sixteen_bit, eight_bit), "-weights_gib")
    if row is None:
        return None
    return (
        f"Measured ({place(row)}): {number(row.weights_gib)} GiB of weights in `{row.precision}`, "
        f"{number(row.weights_gib_other)} GiB in `{row.precision_other}`, "
        f"{row.weights_gib_other / row.weights_gib:.0%} of it ({link(row, 'memory')})."
    )


def score_matrix_memory(tables: Tables) -> str | None:
    """Memory of a prefill: an attention that stores the scores against the leanest one.

    Of whole models above their weights, else of the kernels alone. Accelerators only: on a CPU the peak is the growth
    of the process, whose noise hides the score matrix.
    """
    frame = good_rows(tables, "memory", *WORKLOAD, "weights_gib", "peak_prefill_gib")
    frame = frame[frame["accelerator"].astype(bool)].copy()
    frame["above_weights"] = frame["peak_prefill_gib"] - frame["weights_gib"]
    row = attention_pair(frame, "above_weights")
    if row is None:
        return _score_matrix_of_kernels(tables)
    return (
        f"Measured ({place(row)}, `{row.precision}`, {workload(row)}): at its peak prefill holds "
        f"{number(row.above_weights)} GiB above the weights with `{row.attention}` attention and "
        f"{number(row.above_weights_other)} GiB with `{row.attention_other}` ({link(row, 'memory')})."
    )


def _score_matrix_of_kernels(tables: Tables) -> str | None:
    """Memory beyond their inputs that the kernels of attention.csv take at the longest prompt that several ran."""
    frame = good_rows(tables, "attention", "prompt_tokens", "extra_mib", "heads")
    keys = [*PLACE, "prompt_tokens"]
    best = leading(frame[frame.groupby(keys)["attention"].transform("nunique") > 1], "-prompt_tokens")
    if best is None:
        return None
    rows = frame[(frame[keys] == best[keys]).all(axis=1)].sort_values("extra_mib", ascending=False)
    parts = [f"`{row.attention}` {number(row.extra_mib)} MiB" for row in rows.itertuples()]
    scores = best.heads * best.prompt_tokens**2 * 2 / 2**20
    return (
        f"Measured ({place(best)}), the kernels alone at a prefill of {int(best.prompt_tokens)} tokens and "
        f"{int(best.heads)} heads, whose 16-bit scores are {number(scores)} MiB, take beyond their inputs: "
        f"{', '.join(parts)} ({link(best, 'attention')})."
    )
