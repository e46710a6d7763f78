"""Time the tiles of the matrix-vector kernel on the linear layers of a model, and print the fastest of each.

    python tools/sweep_tiles.py --shape llama-2-7b llama-2-13b llama-2-70b --stored int8 --output tiles.json

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
from llmstudy.kernels.quantize import FP8, INT4, group_of  # noqa: E402

DTYPES = {"int8": torch.int8, "fp8": FP8, "int4": INT4}
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


def candidates(layer: Linear, stored: str) -> list[MatvecTile]:
    """Return the tiles whose weights and activations fit the registers, the present choice first."""
    tiles = [choose(1, layer.n_out, layer.in_features, torch.bfloat16, DTYPES[stored], layer.gated)]
    # Registers for a column: of x, in fixed point with two numbers each or as a float; of a weight.
    x_registers, weight_registers = {"int8": (0.55, 1 / 4), "int4": (0.6, 1 / 8), "fp8": (1, 1 / 4)}[stored]
    for block_n, warps, rounds in product((2, 4, 8), (2, 4, 8, 16), (1, 2, 4, 8)):
        block_k = integer_block_k(layer.in_features, warps, DTYPES[stored])
        padded = triton.cdiv(layer.in_features, block_k) * block_k
        columns = padded / (32 * warps)
        weights = block_n * columns * weight_registers * (2 if layer.gated else 1) * (2 if rounds > 1 else 1)
        fitting = x_registers * columns + weights <= REGISTERS
        if fitting and padded <= 1.5 * layer.in_features and block_n * rounds * 132 <= layer.n_out:
            tiles.append(MatvecTile(block_n, block_k, warps, rounds))
    return list(dict.fromkeys(tiles))


def operand(shape: tuple[int, int], stored: str) -> LinearOperand:
    """Return random weights [out, in]."""
    if stored == "int4":
        packed = torch.randint(0, 256, (shape[0], shape[1] // 2), dtype=torch.uint8, device="cuda")
        scale = torch.rand(shape[0], shape[1] // group_of(shape[1]), device="cuda") * 1e-3
        return LinearOperand(packed, scale.bfloat16())
    weight = torch.randint(-127, 128, shape, dtype=torch.int8, device="cuda")
    if stored == "fp8":
        weight = weight.bfloat16().to(FP8)
    return LinearOperand(weight, torch.rand(shape[0], device="cuda") * 1e-3)


class Bench:
    """Copies of the weights of a layer, and the tensors around them."""

    def __init__(self, layer: Linear, stored: str, copies: int):
        self.layer, self.copies = layer, copies
        self.operands = [operand((layer.rows, layer.in_features), stored) for _ in range(self.copies)]
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


def compile_all(work: list[tuple[Linear, str, MatvecTile]]) -> None:
    """Compile kernels into Triton's cache, on small weights."""
    for layer, stored, tile in work:
        bench = Bench(replace(layer, n_out=tile.block_n * tile.rounds * 16), stored, copies=1)
        bench.launch(tile, bench.operands[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", nargs="+", default=["llama-2-7b"])
    parser.add_argument("--stored", nargs="+", default=["int8"], choices=sorted(DTYPES))
    parser.add_argument("--output", type=Path, default=Path("tiles.json"))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("sweep_tiles measures CUDA kernels and found no CUDA device")
    work = {
        (shape, layer, stored): candidates(layer, stored)
        for shape, stored in product(options.shape, options.stored)
        for layer in linears(shape)
    }
    every = list(dict.fromkeys((layer, stored, tile) for (_, layer, stored), tiles in work.items() for tile in tiles))
    workers = min(12, len(os.sched_getaffinity(0)))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        list(pool.map(compile_all, [every[start::workers] for start in range(workers)]))
    results = []
    for (shape, layer, stored), tiles in work.items():
        floor_bytes = layer.rows * layer.in_features // (2 if stored == "int4" else 1)
        bench = Bench(layer, stored, copies=max(4, CACHE_BYTES // floor_bytes + 1))
        timed = sorted((bench.microseconds(tile), number) for number, tile in enumerate(tiles))
        del bench
        torch.cuda.empty_cache()
        print(f"{shape} {stored} {layer.name} {layer.rows} x {layer.in_features}, {len(tiles)} tiles")
        for us, number in timed[:6] + [pair for pair in timed[6:] if pair[1] == 0]:
            now = "  (present choice)" if number == 0 else ""
            print(f"  {us:7.2f} us  {floor_bytes / us / 1e6:5.2f} TB/s  {tiles[number]}{now}")
        results += [
            {"shape": shape, "stored": stored, "linear": layer.name, "us": us, "present": number == 0}
            | asdict(tiles[number])
            for us, number in timed
        ]
        options.output.write_text(json.dumps(results, indent=0), encoding="utf-8")


if __name__ == "__main__":
    main()
