"""Measure decode and prefill of the graph runtime on random weights of a true shape, and print a table.

    python tools/bench_kernels.py --shape llama-2-7b --output bench.json

Reproduces the table of docs/performance.md. Every row is judged by its share of the copy bandwidth that is measured
in the same process (MBU): bytes a step must read / TPOT / bandwidth.
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

from llmstudy.errors import StudyError, Unsupported  # noqa: E402
from llmstudy.fetch.synthetic import llama_config, random_tensor  # noqa: E402
from llmstudy.measure import footprint  # noqa: E402
from llmstudy.measure.device import bandwidth_gb_s  # noqa: E402
from llmstudy.models import precisions  # noqa: E402
from llmstudy.runtimes.graph import GraphRuntime  # noqa: E402

WORKLOADS = [(1, 512), (8, 512), (16, 512), (32, 512), (1, 1024), (1, 2048), (1, 4096)]


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
    """One workload: medians over generations and their range."""

    precision: str
    batch: int
    prompt_tokens: int
    new_tokens: int
    ttft_ms: float
    tpot_ms: float
    tpot_min_ms: float
    tpot_max_ms: float
    mbu: float
    compile_s: float
    peak_gib: float


def measure(model, name: str, batch: int, prompt: int, new: int, repeats: int, bandwidth: float) -> Row:
    """Two generations to warm up, then ``repeats`` measured ones."""
    torch.cuda.reset_peak_memory_stats()
    runtime = GraphRuntime(model, batch, prompt, new)
    try:
        compile_s = runtime.prepare().compile_s
        ids = torch.randint(3, model.config.vocab_size, (batch, prompt), device="cuda")
        lines = [runtime.generate(ids).token_s for _ in range(repeats + 2)][2:]
    finally:
        runtime.close()
    tpot = [(line[-1] - line[0]) / (new - 1) for line in lines]
    middle = statistics.median(tpot)
    step_bytes = footprint.step_weight_bytes(model)
    step_bytes += footprint.kv_bytes_per_token(model) * batch * (prompt + new // 2)
    return Row(
        precision=name,
        batch=batch,
        prompt_tokens=prompt,
        new_tokens=new,
        ttft_ms=statistics.median(line[0] for line in lines) * 1000,
        tpot_ms=middle * 1000,
        tpot_min_ms=min(tpot) * 1000,
        tpot_max_ms=max(tpot) * 1000,
        mbu=step_bytes / middle / (1e9 * bandwidth),
        compile_s=compile_s,
        peak_gib=torch.cuda.max_memory_allocated() / 2**30,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="llama-2-7b")
    parser.add_argument("--precisions", nargs="+", default=["bf16", "int8-fused"])
    parser.add_argument("--new-tokens", type=int, default=129)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("bench.json"))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench_kernels measures CUDA kernels and found no CUDA device")
    bandwidth = bandwidth_gb_s("cuda", torch.cuda.synchronize)["copy"]
    result = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "bandwidth_gb_s": bandwidth}
    rows = []
    for name in options.precisions:
        request = precisions.LoadRequest(RandomWeights(options.shape), "cuda", "sdpa")
        model = precisions.get(name).load(request)
        for batch, prompt in WORKLOADS:
            try:
                rows.append(measure(model, name, batch, prompt, options.new_tokens, options.repeats, bandwidth))
            except (Unsupported, torch.cuda.OutOfMemoryError) as error:
                print(f"{name}, batch {batch}, prompt {prompt}: {error}", file=sys.stderr)
            gc.collect()
        del model
        gc.collect()
        torch.cuda.empty_cache()
        options.output.write_text(
            json.dumps(result | {"rows": [asdict(row) for row in rows]}, indent=1), encoding="utf-8"
        )
    print(f"{result['device']}, torch {result['torch']}, copy bandwidth {bandwidth / 1e3:.2f} TB/s\n")
    print("| precision | batch | prompt | TTFT ms | TPOT ms (range) | MBU | peak GiB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        print(
            f"| {row.precision} | {row.batch} | {row.prompt_tokens} | {row.ttft_ms:.1f} | {row.tpot_ms:.3f} "
            f"({row.tpot_min_ms:.3f}–{row.tpot_max_ms:.3f}) | {row.mbu:.2f} | {row.peak_gib:.1f} |"
        )


if __name__ == "__main__":
    try:
        main()
    except StudyError as error:
        raise SystemExit(str(error)) from None
