"""Time precisions and runtimes on random weights of a true shape against each other, and print tables of ratios.

    python tools/bench_kernels.py --shape llama-2-7b --output bench.json

Reproduces the tables of docs/performance.md. All models lie in memory together and are called in turn, so that a ratio
compares calls of the same seconds. MBU: bytes that a step must read / TPOT / bandwidth, the better of copy and read.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow" / "scripts"))

from llmstudy import runtimes  # noqa: E402
from llmstudy.errors import StudyError, Unsupported  # noqa: E402
from llmstudy.fetch.synthetic import llama_config, random_tensor  # noqa: E402
from llmstudy.measure import footprint  # noqa: E402
from llmstudy.measure.device import bandwidth_gb_s  # noqa: E402
from llmstudy.models import precisions  # noqa: E402

CONFIGURATIONS = [
    *(f"{name}/graph" for name in ("bf16", "int8-fused", "fp8", "int4-fused")),
    *(f"{name}/generate" for name in ("bf16", "int8-fused", "fp8")),
    "bf16/compile",
]
WORKLOADS = ["1x512", "1x2048", "8x512", "16x512", "32x512", "1x4064", "8x4064"]
FEW = ["1x512"]  # of the runtimes whose launches limit them, and that say the same at every size
TARGETS = [  # quantity, workloads, configuration, base, at most
    ("ttft_ms", ["1x512", "1x2048"], "fp8/graph", "bf16/graph", 0.65),
    ("tpot_ms", ["1x512"], "fp8/graph", "int8-fused/graph", 1.05),
    ("tpot_ms", ["8x512", "16x512", "32x512"], "fp8/graph", "bf16/graph", 0.65),
    ("ttft_ms", ["1x512"], "int8-fused/graph", "bf16/graph", 1.15),
    ("tpot_ms", ["1x512"], "int4-fused/graph", "bf16/graph", 0.42),
    ("tpot_ms", ["1x512"], "bf16/graph", "bf16/compile", 1 / 1.7),
    ("tpot_ms", ["1x512"], "int8-fused/generate", "bf16/generate", 1.0),
    ("tpot_ms", ["1x512"], "fp8/generate", "bf16/generate", 1.0),
]


@dataclass(frozen=True)
class RandomWeights:
    """Random weights of a shape for ``LoadRequest``, drawn on the device and never written."""

    shape: str | dict
    real: bool = False
    attention: tuple[str, ...] = ()

    def config(self):
        return llama_config(self.shape)

    def tensor(self, name, shape, dtype, device):
        return random_tensor(name, tuple(shape), dtype, device, seed=0, deviation=0.02)


@dataclass(frozen=True)
class Row:
    """One configuration and workload: medians over rounds, and the range of TPOT."""

    configuration: str
    workload: str
    ttft_ms: float
    tpot_ms: float
    tpot_min_ms: float
    tpot_max_ms: float
    mbu: float
    compile_s: float


def measure(models: dict, names: list[str], workload: str, new: int, rounds: int, bandwidth: float) -> list[Row]:
    """Return a row for each configuration that runs: two calls to warm up, then one a round."""
    batch, prompt = map(int, workload.split("x"))
    running, compile_s = {}, {}
    for name in names:
        precision, _, runtime = name.partition("/")
        try:
            running[name] = runtimes.get(runtime)(models[precision], batch, prompt, new)
            compile_s[name] = running[name].prepare().compile_s
        except (Unsupported, torch.cuda.OutOfMemoryError) as error:
            print(f"{name}, {workload}: {str(error).splitlines()[0]}", file=sys.stderr)
            running.pop(name).close()
    lines: dict[str, list] = {name: [] for name in running}
    vocabulary = next(iter(models.values())).config.vocab_size
    ids = torch.randint(3, vocabulary, (batch, prompt), device="cuda")
    try:
        for _ in range(rounds + 2):
            for name, runtime in running.items():
                lines[name].append(runtime.generate(ids).token_s)
    finally:
        for runtime in running.values():
            runtime.close()
    rows = []
    for name, calls in lines.items():
        tpot = [(line[-1] - line[0]) / (new - 1) for line in calls[2:]]
        middle = statistics.median(tpot)
        model = models[name.partition("/")[0]]
        step_bytes = footprint.step_weight_bytes(model)
        step_bytes += batch * footprint.kv_bytes(model, prompt + new // 2)
        ttft = statistics.median(line[0] for line in calls[2:])
        mbu = step_bytes / middle / (1e9 * bandwidth)
        milliseconds = (1000 * value for value in (ttft, middle, min(tpot), max(tpot)))
        rows.append(Row(name, workload, *milliseconds, mbu, compile_s[name]))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="llama-2-7b")
    parser.add_argument("--configurations", nargs="+", default=CONFIGURATIONS, help="precision/runtime")
    parser.add_argument("--workloads", nargs="+", default=WORKLOADS, help="batch x prompt tokens")
    parser.add_argument("--new-tokens", type=int, default=65)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("bench.json"))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench_kernels measures CUDA kernels and found no CUDA device")
    bandwidth = max(bandwidth_gb_s("cuda", torch.cuda.synchronize).values())
    result = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "bandwidth_gb_s": bandwidth}
    names = [name for name in options.configurations if name.partition("/")[2] in runtimes.MODULES]
    models = {}
    for name in dict.fromkeys(name.partition("/")[0] for name in names):
        request = precisions.LoadRequest(RandomWeights(options.shape), "cuda", "sdpa")
        models[name] = precisions.get(name).load(request)
    rows: list[Row] = []
    print(f"{result['device']}, torch {result['torch']}, bandwidth {bandwidth / 1e3:.2f} TB/s\n")
    print("| configuration | workload | TTFT ms | TPOT ms (range) | MBU | compile s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for workload in options.workloads:
        here = [name for name in names if name.endswith("/graph") or workload in FEW]
        for row in measure(models, here, workload, options.new_tokens, options.rounds, bandwidth):
            rows.append(row)
            print(
                f"| {row.configuration} | {row.workload} | {row.ttft_ms:.1f} | {row.tpot_ms:.3f} "
                f"({row.tpot_min_ms:.3f}–{row.tpot_max_ms:.3f}) | {row.mbu:.2f} | {row.compile_s:.0f} |",
                flush=True,
            )
        gc.collect()
        torch.cuda.empty_cache()
        text = json.dumps(result | {"rows": [asdict(row) for row in rows]}, indent=1)
        options.output.write_text(text, encoding="utf-8")
    print("\n| target | workload | ratio | at most |\n| --- | --- | --- | --- |")
    measured = {(row.configuration, row.workload): row for row in rows}
    for quantity, workloads, name, base, most in TARGETS:
        for workload in workloads:
            if (name, workload) in measured and (base, workload) in measured:
                ratio = getattr(measured[name, workload], quantity) / getattr(measured[base, workload], quantity)
                what = f"{quantity.removesuffix('_ms').upper()} {name} ÷ {base}"
                print(f"| {what} | {workload} | {ratio:.2f} | {most:.2f} |")


if __name__ == "__main__":
    try:
        main()
    except StudyError as error:
        raise SystemExit(str(error)) from None
