"""Tables of the diagnostics that turn one record into rows, none of which needs another.

outliers.csv has one row per layer, linear layer and threshold: what LLM.int8() would keep in 16 bit. Shares are of the
whole text: ``column_share`` of input columns with an outlier in some token, ``row_share`` of tokens with an outlier in
some column, ``entry_share`` of single activations. ``max_abs`` is the largest magnitude.

sensitivity.csv has one row per part of the model that was rounded to int8 while the rest kept ``precision``. ``layer``
or ``linear`` is ``all`` where a part spans them. ``delta_nll`` in nats per token has its standard error and 95 %
interval over documents; ``kl_nats`` is the mean KL divergence from the unrounded model, with its interval, which ranks
parts that ``delta_nll`` cannot tell apart.

invariance.csv has one row per precision, batch size and neighbours of the same prompt. Differences are from the prompt
alone; ``copies`` are neighbours equal to it, ``others 1`` … other texts.

profile.csv has one row per configuration: where the time of a decode step goes. Per token of the batch's step,
``launches_per_token`` counts kernel launches by the host (the replay of a graph is one), ``kernels_per_token`` kernels
that the device ran, ``syncs_per_token`` host synchronizations, ``operators_per_token`` PyTorch operators called from
Python. On a CPU there are no launches and kernels, and ``syncs_per_token`` counts values read back, which on a GPU
would wait. ``device_busy_share`` is the share of a step in which the device works: on a GPU time covered by kernels ÷
TPOT without the profiler, on a CPU time inside operators ÷ time of the step, both under the profiler. ``flops_share``
is what a step must compute ÷ TPOT ÷ the matrix-product rate measured in the same job, ``mbu`` the same for bytes and
copy bandwidth; ``limit``: see ``limit_of``.

attention.csv has one row per attention kernel, context and phase: the kernel alone, not the model. ``time_ms`` is the
median over repeats, ``time_low_ms`` and ``time_high_ms`` their range. ``tflops`` (prefill) counts 4 · heads · head
width · n² / 2 operations whatever the kernel really computes; ``gb_s`` (decode) counts keys and values read once.
``extra_mib`` is the peak on top of the inputs (CUDA alone), ``max_abs_error`` the difference from textbook attention in
fp32 on the same inputs, ``kernel`` what the profiler recorded.
"""

from __future__ import annotations

from itertools import product
from statistics import median

from llmstudy.llama import causal_attention_flops
from llmstudy.stats.estimate import critical_value
from llmstudy.tables import Sources
from llmstudy.tables.columns import AT_WORKLOAD, SHARED, Column, columns, pick
from llmstudy.tables.records import by_key, identity
from llmstudy.tables.speed import COLUMNS as SPEED

ALL = "all"
HALF = 0.5
VALUE_BYTES = 2  # the inputs of an attention kernel are bf16
MIB = 2**20
OF_PART = {"delta_nll": "delta_nll", "delta_nll_se": "se", "delta_nll_low": "low", "delta_nll_high": "high"}
OF_PART |= {"kl_nats": "kl", "kl_se_nats": "kl_se"}
COLUMNS = {
    "outliers": columns(
        "layer:text linear:text threshold columns:count max_abs column_share:percent row_share:percent "
        "entry_share:percent tokens:count",
        SHARED,
    ),
    "sensitivity": [
        *columns("layer:text linear:text delta_nll:signed", SHARED),
        Column("delta_nll_se", "SE of Δ NLL"),
        *columns("delta_nll_low:signed delta_nll_high:signed kl_nats:nats kl_low_nats:nats kl_high_nats:nats"),
        Column("kl_se_nats", "SE of KL, nats", "nats"),
        *columns("tokens:count blocks:text"),
    ],
    "invariance": columns(
        "batch:count neighbours:text max_abs_delta_logit mean_abs_delta_logit top1_changes:count positions:count",
        SHARED,
    ),
    "profile": [
        *columns("tpot_ms launches_per_token kernels_per_token", SHARED + AT_WORKLOAD),
        *columns("syncs_per_token operators_per_token device_busy_share:percent matmul_share:percent"),
        *pick(SPEED["speed"], "step_bytes bandwidth_gb_s mbu"),
        Column("matmul_tflops", "matrix products, TFLOP/s"),
        *columns("flops_share:percent limit:text top_operations:text"),
    ],
    "attention": [
        *columns("context:count phase:text prompt_tokens:count time_ms time_low_ms time_high_ms", SHARED),
        Column("tflops", "TFLOP/s"),
        Column("gb_s", "GB/s"),
        *columns("extra_mib max_abs_error kernel:text heads:count kv_heads:count head_dim:count"),
    ],
}


def outliers(sources: Sources) -> list[dict]:
    """Return a row for every linear layer and threshold; one row with the status where nothing was measured."""
    rows = []
    for record in sources.records:
        shared = identity(record) | {"tokens": record["results"].get("tokens")}
        rows += [
            shared | {key: entry[key] for key in ("layer", "linear", "columns", "max_abs")} | at_threshold
            for entry in record["results"].get("linears", [])
            for at_threshold in entry["thresholds"]
        ] or [shared]
    return rows


def sensitivity(sources: Sources) -> list[dict]:
    """Return a row for every rounded part; one row with the status where nothing was measured."""
    rows = []
    for record in sources.records:
        results = record["results"]
        shared = identity(record) | {key: results.get(key) for key in ("tokens", "blocks")}
        rows += [
            shared
            | {name: part[key] for name, key in OF_PART.items()}
            | {"layer": ALL if part["layer"] is None else part["layer"], "linear": part["linear"] or ALL}
            | _divergence_ends(part, results["blocks"])
            for part in results.get("parts", [])
        ] or [shared]
    return rows


def _divergence_ends(part: dict, blocks: str) -> dict:
    """Return the ends of the 95 % interval of a part's KL divergence, Student's t over blocks ("8 documents"); none if
    the text was too short. A divergence is never negative, so the low end is at least 0, unless the mean is below."""
    if part["kl_se"] is None:
        return {}
    half = critical_value(int(blocks.split()[0]) - 1) * part["kl_se"]
    return {"kl_low_nats": max(part["kl"] - half, min(part["kl"], 0.0)), "kl_high_nats": part["kl"] + half}


def invariance(sources: Sources) -> list[dict]:
    """Return a row for every batch; one row with the status where nothing was measured."""
    rows = []
    for record in sources.records:
        results = record["results"]
        rows += [
            entry | identity(record, entry) | {"positions": results["positions"]}
            for entry in results.get("batches", [])
        ] or [identity(record)]
    return rows


def profile(sources: Sources) -> list[dict]:
    """Return a row for every configuration."""
    rows = []
    for record in sources.records:
        results = record["results"]
        row = identity(record) | results.get("workload", {})
        row |= {key: results.get(key) for key in ("tpot_ms", "step_bytes", "bandwidth_gb_s", "matmul_tflops")}
        rows.append(row | (step_columns(results, row["device"] == "cuda") if "step" in results else {}))
    return rows


def step_columns(results: dict, on_gpu: bool) -> dict:
    """Return the columns of a profiled step."""
    step, seconds = results["step"], results["tpot_ms"] / 1e3
    mbu = results["step_bytes"] / seconds / (results["bandwidth_gb_s"] * 1e9)
    flops_share = results["step_flops"] / seconds / (results["matmul_tflops"] * 1e12)
    # At most 1: the step was timed without the profiler, and may have been a little quicker.
    busy_share = min(1.0, step["busy_ms"] / (results["tpot_ms"] if on_gpu else step["profiled_ms"]))
    return {
        "launches_per_token": step["launches"] if on_gpu else None,
        "kernels_per_token": step["kernels"] if on_gpu else None,
        "syncs_per_token": step["waits"],
        "operators_per_token": step["operators"],
        "device_busy_share": busy_share,
        "matmul_share": step["matmul_share"],
        "mbu": mbu,
        "flops_share": flops_share,
        "limit": limit_of(mbu, flops_share, busy_share),
        "top_operations": "; ".join(f"{name} {share:.0%}" for name, share in step["top"]),
    }


def limit_of(mbu: float, flops_share: float, busy_share: float) -> str:
    """Return what limits a decode step.

    ``bandwidth-bound``: it reads what it must at half of the copy bandwidth or more. ``compute-bound``: it computes
    what it must at half of the matrix-product rate or more; the larger of the two wins. ``launch-bound``: neither, and
    the device idles for more than half of the step, so the host is too slow. ``overhead-bound``: neither, but the
    device works: on more than the step needs, or inefficiently.
    """
    if max(mbu, flops_share) >= HALF:
        return "bandwidth-bound" if mbu >= flops_share else "compute-bound"
    return "launch-bound" if busy_share < HALF else "overhead-bound"


def attention(sources: Sources) -> list[dict]:
    """Return a row for every context and phase that a record was to measure, measured or not."""
    rows = []
    for record in sources.records:
        results = record["results"]
        points = by_key(record, "points", "context", "phase")
        shape = {key: results.get(key) for key in ("heads", "kv_heads", "head_dim")}
        for context, phase in product(record["settings"]["contexts"], ("prefill", "decode")):
            point = points.get((context, phase))
            row = identity(record, point) | shape | {"context": context, "phase": phase}
            row["prompt_tokens"] = context if phase == "prefill" else None
            if point and point["status"] == "ok":
                row |= kernel_columns(point, results)
            rows.append(row)
    return rows


def kernel_columns(point: dict, shape: dict) -> dict:
    """Return the columns of an attention kernel at one measured context and phase."""
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
