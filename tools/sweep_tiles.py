"""Time the tiles of the matrix-vector kernel on the linear layers of a model, and print the fastest of each.

    python tools/sweep_tiles.py --shape llama-2-7b llama-2-13b llama-2-70b --output tiles.json

``SWEPT`` in ``kernels/launch.py`` comes from here. A layer is timed as it runs in a decode step: one row, with its
norm, residual or gate, launched with PDL behind another of its kind in a captured graph, over more copies of its
weights than any cache has room for.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import torch
import triton

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow" / "scripts"))

from llmstudy.fetch.synthetic import llama_config  # noqa: E402
from llmstudy.kernels.launch import LinearOperand, MatvecTile, choose, integer_block_k, linear  # noqa: E402

CACHE_BYTES = 2**29  # ten times the L2 cache of an H200
REPLAYS = 7
REGISTERS = 150  # of 255 that a thread can have: addresses and sums need some


@dataclass(frozen=True)
class Linear:
    """A linear layer of a decoder layer: n_out outputs (of gate and of up if ``gated``) from in_features inputs."""

    name: str
    n_out: int
    in_features: int
    norm: bool = False
    gated: bool = False

    @property
    def rows(self) -> int:
        return self.n_out * (2 if self.gated else 1)


def linears(shape: str) -> list[Linear]:
    """Return the four fused linear layers of a decoder layer."""
    config = llama_config(shape)
    hidden, inner = config.hidden_size, config.intermediate_size
    kv = config.num_key_value_heads * config.head_dim
    return [
        Linear("q, k, v", hidden + 2 * kv, hidden, norm=True),
        Linear("output", hidden, hidden),
        Linear("gate, up", inner, hidden, norm=True, gated=True),
        Linear("down", hidden, inner),
    ]


def candidates(layer: Linear) -> list[MatvecTile]:
    """Return the tiles whose weights and activations fit the registers, the present choice first."""
    tiles = [choose(1, layer.n_out, layer.in_features, torch.bfloat16, torch.int8, layer.gated)]
    for block_n, warps, rounds in product((2, 4, 8), (2, 4, 8, 16), (1, 2, 4, 8)):
        block_k = integer_block_k(layer.in_features, warps)
        padded = triton.cdiv(layer.in_features, block_k) * block_k
        columns = padded / (32 * warps)  # of x, a little more than half a register each; weights lie four to one
        weights = block_n * columns / 4 * (2 if layer.gated else 1) * (2 if rounds > 1 else 1)
        fitting = 0.55 * columns + weights <= REGISTERS
        if fitting and padded <= 1.25 * layer.in_features and block_n * rounds * 132 <= layer.n_out:
            tiles.append(MatvecTile(block_n, block_k, warps, rounds))
    return list(dict.fromkeys(tiles))


class Bench:
    """Copies of the weights of a layer, and the tensors around them."""

    def __init__(self, layer: Linear, copies: int):
        self.layer, self.copies = layer, copies
        shape = (layer.rows, layer.in_features)
        self.operands = [
            LinearOperand(
                torch.randint(-127, 128, shape, dtype=torch.int8, device="cuda"),
                torch.rand(layer.rows, device="cuda") * 1e-3,
            )
            for _ in range(self.copies)
        ]
        self.x = torch.randn(1, layer.in_features, dtype=torch.bfloat16, device="cuda")
        self.norm = torch.ones(layer.in_features, dtype=torch.bfloat16, device="cuda") if layer.norm else None
        self.out = torch.zeros(1, layer.n_out, dtype=torch.bfloat16, device="cuda")
        self.residual = None if layer.norm else self.out

    def launch(self, tile: MatvecTile, operand: LinearOperand) -> None:
        """Launch a product, which may begin while the one before it ends."""
        linear(
            self.x, operand, out=self.out, residual=self.residual, norm=self.norm, eps=1e-5, gated=self.layer.gated,
            pdl=True, tile=tile,
        )  # fmt: skip

    def microseconds(self, tile: MatvecTile) -> float:
        """Return the time of a product, the median over replays of the chain."""
        self.launch(tile, self.operands[0])
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for operand in self.operands:
                self.launch(tile, operand)
        times = []
        for _ in range(REPLAYS + 2):
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            stop.record()
            stop.synchronize()
            times.append(1e3 * start.elapsed_time(stop) / self.copies)
        return sorted(times[2:])[REPLAYS // 2]


def compile_all(work: list[tuple[Linear, MatvecTile]]) -> None:
    """Compile kernels into Triton's cache, on small weights."""
    for layer, tile in work:
        bench = Bench(replace(layer, n_out=tile.block_n * tile.rounds * 16), copies=1)
        bench.launch(tile, bench.operands[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", nargs="+", default=["llama-2-7b"])
    parser.add_argument("--output", type=Path, default=Path("tiles.json"))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("sweep_tiles measures CUDA kernels and found no CUDA device")
    work = {(shape, layer): candidates(layer) for shape in options.shape for layer in linears(shape)}
    every = list(dict.fromkeys((layer, tile) for (_, layer), tiles in work.items() for tile in tiles))
    workers = min(12, len(os.sched_getaffinity(0)))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        list(pool.map(compile_all, [every[start::workers] for start in range(workers)]))
    results = []
    for (shape, layer), tiles in work.items():
        floor_bytes = layer.rows * layer.in_features
        bench = Bench(layer, copies=max(4, CACHE_BYTES // floor_bytes + 1))
        timed = sorted((bench.microseconds(tile), number) for number, tile in enumerate(tiles))
        del bench
        torch.cuda.empty_cache()
        print(f"{shape} {layer.name} {layer.rows} x {layer.in_features}, {len(tiles)} tiles")
        for us, number in timed[:6] + [pair for pair in timed[6:] if pair[1] == 0]:
            now = "  (present choice)" if number == 0 else ""
            print(f"  {us:7.2f} us  {floor_bytes / us / 1e6:5.2f} TB/s  {tiles[number]}{now}")
        results += [
            {"shape": shape, "linear": layer.name, "us": us, "present": number == 0} | asdict(tiles[number])
            for us, number in timed
        ]
        options.output.write_text(json.dumps(results, indent=0), encoding="utf-8")


if __name__ == "__main__":
    main()
