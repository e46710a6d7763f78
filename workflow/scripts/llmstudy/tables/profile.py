"""profile.csv: one row per configuration; where the time of a decode step goes.

Per token of the batch's step: ``launches_per_token`` kernel launches by the host (a graph replay is one),
``kernels_per_token`` that the device ran, ``syncs_per_token`` host synchronisations, ``operators_per_token`` PyTorch
operators called from Python. On a CPU there are no launches and kernels (empty), and ``syncs_per_token`` counts values
read back, which on a GPU would wait. ``device_busy_share`` is the share of a step in which the device works: on a GPU
time covered by kernels ÷ TPOT without the profiler, on a CPU time inside operators ÷ time of the step, both under the
profiler. ``flops_share`` is what a step must compute ÷ TPOT ÷ the matrix-product rate measured in the same job, ``mbu``
the same for bytes and copy bandwidth.

``limit`` says what a step is up against, by ``limit_of``.
"""

from __future__ import annotations

from pathlib import Path

from llmstudy.tables.columns import SHARED, WORKLOAD
from llmstudy.tables.common import identity, read_records, write_table

COLUMNS = [
    *SHARED,
    *WORKLOAD,
    "tpot_ms",
    "launches_per_token",
    "kernels_per_token",
    "syncs_per_token",
    "operators_per_token",
    "device_busy_share",
    "matmul_share",
    "step_bytes",
    "bandwidth_gb_s",
    "mbu",
    "matmul_tflops",
    "flops_share",
    "limit",
    "top_operations",
]

HALF = 0.5


def write(paths: list[str], output: Path) -> None:
    """Aggregate profile records."""
    write_table([row_of(record) for record in read_records(paths)], COLUMNS, output)


def row_of(record: dict) -> dict:
    """The row of one configuration."""
    results = record["results"]
    row = identity(record) | results.get("workload", {})
    row |= {key: results.get(key) for key in ("step_bytes", "bandwidth_gb_s", "matmul_tflops")}
    return row | (step_columns(results, record["identity"]["device"]) if "step" in results else {})


def step_columns(results: dict, device: str) -> dict:
    """The columns of a profiled step."""
    step, seconds = results["step"], results["tpot_ms"] / 1e3
    on_gpu = device == "cuda"
    mbu = results["step_bytes"] / seconds / (results["bandwidth_gb_s"] * 1e9)
    flops_share = results["step_flops"] / seconds / (results["matmul_tflops"] * 1e12)
    # At most all of it: the step was timed apart from the profile, and may have been a little quicker.
    busy_share = min(1.0, step["busy_ms"] / (results["tpot_ms"] if on_gpu else step["profiled_ms"]))
    return {
        "tpot_ms": results["tpot_ms"],
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
    """What a decode step is up against.

    ``bandwidth-bound``  it reads what it must at half of the copy bandwidth or more
    ``compute-bound``    it computes what it must at half of the matrix-product rate or more (the larger of both wins)
    ``launch-bound``     neither, and the device idles for more than half of the step: the host is too slow
    ``overhead-bound``   neither, but the device works: on more than the step needs, or inefficiently
    """
    if max(mbu, flops_share) >= HALF:
        return "bandwidth-bound" if mbu >= flops_share else "compute-bound"
    return "launch-bound" if busy_share < HALF else "overhead-bound"
