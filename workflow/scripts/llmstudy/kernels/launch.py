"""Launches the Triton kernels: which kernel with which tile, from the shape alone.

Tiles come from sweeps on an NVIDIA H200 (``tools/sweep_tiles.py``, docs/performance.md): a fixed table, because an
autotuner would run inside a captured graph, and would make two runs of the study differ.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import triton

from llmstudy.kernels.convert import dequantize_int4_kernel, dequantize_kernel, quantize_tokens_kernel
from llmstudy.kernels.matvec import matvec_kernel
from llmstudy.kernels.quantize import FP8, INT4, LARGEST, group_of
from llmstudy.kernels.tiles import int4_rows_kernel, rows_kernel, tile_kernel

INTERPRETED = triton.knobs.runtime.interpret
# Above this many rows the library's dense product is faster than the kernels here (float32 has no tensor cores in IEEE
# precision: ``Tile`` serves it for agreement and not for speed).
PACKED_ROWS = 64
STORED = {torch.int8: "int8", FP8: "fp8", INT4: "int4"}  # what the kernels call a weight of this dtype
DENSE_ROWS = 16


@dataclass(frozen=True)
class LinearOperand:
    """The right-hand side of a product.

    Attributes:
        weight: [out, in], row-major, int8, e4m3 or the dtype of the activations; int4 packed, [out, in / 2].
        scale: float32 [out] for 8-bit weights, bfloat16 [out, in / group] for int4, else None.
        bias: [out] or None.
        columns: int64 [c], static outlier columns, or None.
        outlier: their weights [out, c] in 16 bit, or None.
    """

    weight: torch.Tensor
    scale: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    columns: torch.Tensor | None = None
    outlier: torch.Tensor | None = None


@dataclass(frozen=True)
class MatvecTile:
    """One row of x: ``rounds`` times ``block_n`` outputs a program, x in chunks of ``block_k``."""

    block_n: int
    block_k: int
    warps: int
    rounds: int = 1


@dataclass(frozen=True)
class Tile:
    """Any number of rows: the usual tiled product."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int


@dataclass(frozen=True)
class RowsTile(Tile):
    """A few rows of x: every warp multiplies its own ``block_k`` columns of a step."""


# Dtype → (outputs, inputs, gated) → (block_n, warps, rounds) of the fastest tile: the fused linears of Llama 2, int8 on
# an H200, the others (7B) on an H100.
SWEPT = {
    torch.int8: {
        # 7B
        (12288, 4096, False): (4, 4, 2),
        (4096, 4096, False): (4, 4, 2),
        (11008, 4096, True): (2, 4, 2),
        (4096, 11008, False): (2, 8, 8),
        # 13B
        (15360, 5120, False): (4, 4, 2),
        (5120, 5120, False): (4, 4, 4),
        (13824, 5120, True): (4, 4, 1),
        (5120, 13824, False): (2, 8, 2),
        # 70B
        (10240, 8192, False): (4, 8, 4),
        (8192, 8192, False): (2, 4, 2),
        (28672, 8192, True): (2, 8, 8),
        (8192, 28672, False): (2, 16, 8),
    },
    FP8: {
        (12288, 4096, False): (4, 4, 2),
        (4096, 4096, False): (4, 4, 2),
        (11008, 4096, True): (2, 4, 2),
        (4096, 11008, False): (2, 4, 1),
    },
    INT4: {
        (12288, 4096, False): (8, 4, 2),
        (4096, 4096, False): (4, 8, 2),
        (11008, 4096, True): (4, 4, 4),
        (4096, 11008, False): (4, 8, 2),
    },
}


def fits(x: torch.Tensor, operand: LinearOperand) -> bool:
    """Return whether the kernels here are the fastest way to multiply x [m, in] by the operand."""
    m = x.shape[0]
    if operand.weight.dtype == INT4:
        return m <= PACKED_ROWS and x.dtype.itemsize == 2
    if operand.scale is not None:
        return m <= PACKED_ROWS
    return m == 1 or (m <= DENSE_ROWS and operand.weight.dtype != torch.float32)


def in_integers(in_features: int, dtype: torch.dtype, weight_dtype: torch.dtype) -> bool:
    """Return whether the product with one row is computed in integers; its groups of 16 must be whole (``fixed``)."""
    if weight_dtype == INT4:
        return True
    return weight_dtype == torch.int8 and dtype.itemsize == 2 and in_features % 16 == 0


def choose(
    m: int, n_out: int, in_features: int, dtype: torch.dtype, weight_dtype: torch.dtype, gated: bool
) -> MatvecTile | Tile:
    """Return the tile, whose type names the kernel, for m rows of activations in ``dtype``."""
    if m == 1:
        swept = SWEPT.get(weight_dtype, {}).get((n_out, in_features, gated))
        if swept and dtype.itemsize == 2:
            block_n, warps, rounds = swept
            return MatvecTile(block_n, integer_block_k(in_features, warps, weight_dtype), warps, rounds)
        if weight_dtype == INT4:
            tile = MatvecTile(block_n=4, block_k=4096, warps=4, rounds=2)
        elif in_integers(in_features, dtype, weight_dtype):
            tile = _integer_tile(n_out, in_features, gated)
        else:
            tile = _matvec_tile(n_out, in_features, weight_dtype.itemsize, gated)
        return replace(tile, block_k=min(tile.block_k, triton.next_power_of_2(in_features)))
    if weight_dtype == INT4:
        block_m = max(8, triton.next_power_of_2(m))
        return RowsTile(block_m, block_n=32, block_k=group_of(in_features), warps=4, stages=3)
    if dtype == torch.float32:
        return Tile(block_m=16, block_n=32, block_k=32, warps=4, stages=2)
    if m > PACKED_ROWS:
        return Tile(block_m=128, block_n=128, block_k=64, warps=8, stages=3)
    block_m = max(8, triton.next_power_of_2(m))
    if weight_dtype.itemsize == 2:
        return RowsTile(block_m, block_n=32, block_k=64, warps=4, stages=3 if gated else 4)
    wide = n_out >= 8192
    if block_m == 8:
        return RowsTile(block_m, block_n=16, block_k=128, warps=4, stages=4)
    if block_m == 16:
        return RowsTile(block_m, block_n=32 if wide else 16, block_k=128 if wide else 256, warps=4, stages=3)
    if block_m == 32 and not wide:
        return RowsTile(block_m, block_n=32, block_k=128, warps=4, stages=4)
    return RowsTile(block_m, block_n=32, block_k=64, warps=4, stages=4 if block_m == 32 else 3)


def _integer_tile(n_out: int, in_features: int, gated: bool) -> MatvecTile:
    # No more columns a thread than it has registers for.
    warps = 4 if in_features <= 6144 else 8 if in_features <= 16384 else 16
    block_n = 4 if in_features <= 8192 and n_out >= 1024 else 2
    rounds = 1 if gated or n_out < 4096 else 2
    return MatvecTile(block_n, integer_block_k(in_features, warps), warps, rounds)


def integer_block_k(in_features: int, warps: int, dtype: torch.dtype = torch.int8) -> int:
    """Return the weights of one load of 16 bytes a thread, of 8 for int4 if rows would end in the middle of a chunk;
    twice as many as long as that divides the row."""
    block_k = 512 * warps * (2 if dtype == INT4 and in_features % (1024 * warps) == 0 else 1)
    while in_features % (2 * block_k) == 0:
        block_k *= 2
    return block_k


def _matvec_tile(n_out: int, in_features: int, itemsize: int, gated: bool) -> MatvecTile:
    # x and the rows of weights lie in registers: more columns need more threads.
    columns = 4096 if gated else 12288
    warps = min(16, 4 * triton.next_power_of_2(triton.cdiv(in_features, columns)))
    if itemsize > 1:
        rounds = 1 if gated or itemsize > 2 else 2
        return MatvecTile(block_n=2, block_k=1024 * warps // itemsize, warps=warps, rounds=rounds)
    return MatvecTile(block_n=4 if warps == 4 else 2, block_k=512 * warps, warps=warps)


def linear(x: torch.Tensor, operand: LinearOperand, **options: Any) -> torch.Tensor:
    """Return x times the operand, plus its bias, with SwiGLU and a residual if they are given; ``plan`` has the options
    and errors."""
    launch = plan(x, operand, **options)
    launch.run()
    return launch.out


class Launch(NamedTuple):
    """A kernel that is ready to run: its ``arguments`` in order, then its constants by name."""

    kernel: triton.JITFunction
    grid: tuple[int, int, int]
    arguments: tuple
    constants: dict[str, Any]
    options: dict[str, Any]
    out: torch.Tensor

    def run(self):
        """Launch; return the compiled kernel, None if it is interpreted."""
        return self.kernel[self.grid](*self.arguments, **self.constants, **self.options)


class Repeated:
    """``linear`` for one operand and one shape of x without its work on the host, which the library's loop waits for.

    ``first`` does what ``linear`` does; from then on a call launches the same compiled kernel.
    """

    compiled = None

    def first(self, x: torch.Tensor, operand: LinearOperand) -> torch.Tensor:
        """Return ``linear(x, operand)``."""
        launch = plan(x, operand)
        arguments = [*launch.arguments, *(launch.constants[name] for name in launch.kernel.arg_names if name.isupper())]
        addresses = [value.data_ptr() if isinstance(value, torch.Tensor) else None for value in arguments]
        self.inputs = [at for at, address in enumerate(addresses) if address == x.data_ptr()]
        self.output = addresses.index(launch.out.data_ptr())
        for at in (*self.inputs, self.output):
            arguments[at] = None  # kept, activations would stay in memory
        self.arguments, self.grid, self.shape = arguments, launch.grid, launch.out.shape
        self.compiled = launch.run()
        return launch.out

    def takes(self, x: torch.Tensor) -> bool:
        """Return whether the compiled kernel may read x: it expects an address that is a multiple of 16."""
        return self.compiled is not None and x.data_ptr() % 16 == 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``linear(x, operand)`` for an x of the shape, dtype and device of the first."""
        out = torch.empty(self.shape, dtype=x.dtype, device=x.device)
        arguments = self.arguments.copy()
        for at in self.inputs:
            arguments[at] = x
        arguments[self.output] = out
        self.compiled[self.grid](*arguments)
        return out


def plan(
    x: torch.Tensor,
    operand: LinearOperand,
    *,
    out: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
    pdl: bool = False,
    tile: MatvecTile | Tile | None = None,
) -> Launch:
    """Return the launch of ``linear``: which kernel, with which tile and arguments.

    Args:
        x: [m, in], contiguous.
        operand: the weight; if ``gated``, its gate rows above its up rows.
        out: the result [m, n], allocated if None; n is the operand's rows, half of them if ``gated``.
        residual: [m, n], added last.
        norm: an RMSNorm weight [in] to apply to x first, for one row alone; ``eps`` is the norm's.
        gated: whether to return silu(gate) * up.
        pdl: whether the launch may overlap the kernel before it, which must then end its reads before it returns.
        tile: the tile to take in place of ``choose``'s.

    Raises:
        ValueError: norm, out and x have several dtypes, or several rows come with a norm.
    """
    m, in_features = x.shape
    n_out = operand.weight.shape[0] // (2 if gated else 1)
    if out is None:
        out = torch.empty(m, n_out, dtype=x.dtype, device=x.device)
    if tile is None:
        tile = choose(m, n_out, in_features, x.dtype, operand.weight.dtype, gated)
    outliers = 0 if operand.columns is None else operand.columns.numel()
    flags = {
        "K": in_features,
        "STORED": STORED.get(operand.weight.dtype, "dense"),
        "OUTLIERS": outliers,
        "BIAS": operand.bias is not None,
        "RESIDUAL": residual is not None,
        "GATED": gated,
        "PDL": pdl and not INTERPRETED,
        "FAST": not INTERPRETED,
    }
    # A kernel takes a pointer for every tensor; those that its flags switch off are never read.
    scale, bias, columns, outlier = (
        x if tensor is None else tensor for tensor in (operand.scale, operand.bias, operand.columns, operand.outlier)
    )
    weight = as_bytes(operand.weight)
    tensors = (scale, bias, columns, outlier, x if residual is None else residual, out)
    options = {"num_warps": tile.warps} | ({"launch_pdl": True} if flags["PDL"] else {})
    group = in_features // operand.scale.shape[1] if operand.weight.dtype == INT4 else 0
    if isinstance(tile, MatvecTile):
        vectors = [x, x if norm is None else norm]
        if any(vector.dtype != x.dtype for vector in (*vectors, out)):
            raise ValueError(f"x {x.dtype}, norm {vectors[1].dtype} and out {out.dtype} must have one dtype")
        fixed = in_integers(in_features, x.dtype, operand.weight.dtype)
        if fixed:
            vectors = [vector.view(torch.int64) for vector in vectors]
            weight = weight.view(torch.int32)
        flags |= {"GROUP": group, "FIXED": fixed, "BLOCK_OUTLIERS": triton.next_power_of_2(max(outliers, 1))}
        flags |= {"NORM": norm is not None, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k, "ROUNDS": tile.rounds}
        grid = (triton.cdiv(n_out, tile.block_n * tile.rounds), 1, 1)
        return Launch(matvec_kernel, grid, (*vectors, weight, *tensors, n_out, eps), flags, options, out)
    if norm is not None:
        raise ValueError("only the matrix-vector kernel applies a norm; give the others normalized rows")
    grid = (triton.cdiv(m, tile.block_m) * triton.cdiv(n_out, tile.block_n), 1, 1)
    flags |= {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k, "STAGES": tile.stages}
    if isinstance(tile, RowsTile):
        flags["WARPS"] = tile.warps
    if group:
        flags = {name: flags[name] for name in flags.keys() - {"STORED", "OUTLIERS", "FAST"}} | {"GROUP": group}
        return Launch(int4_rows_kernel, grid, (x, weight, scale, bias, *tensors[4:], m, n_out), flags, options, out)
    flags["BLOCK_OUTLIERS"] = 16 if outliers <= 16 else 32
    kernel = rows_kernel if isinstance(tile, RowsTile) else tile_kernel
    return Launch(kernel, grid, (x, weight, *tensors, m, n_out), flags, options, out)


def dequantize(q: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a weight of ``LinearOperand`` [out, in] in ``dtype``, at the speed of the memory."""
    n_out, in_features = q.shape[0], q.shape[1] * (2 if q.dtype == INT4 else 1)
    out = torch.empty(n_out, in_features, dtype=dtype, device=q.device)
    block_k = min(1024, triton.next_power_of_2(q.shape[1]))
    grid = (triton.cdiv(n_out, 8), triton.cdiv(q.shape[1], block_k))
    options = {"K": in_features, "BLOCK_N": 8, "BLOCK_K": block_k, "num_warps": 4}
    if q.dtype == INT4:
        dequantize_int4_kernel[grid](as_bytes(q), scale, out, n_out, GROUP=in_features // scale.shape[1], **options)
    else:
        dequantize_kernel[grid](as_bytes(q), scale, out, n_out, STORED=STORED[q.dtype], **options)
    return out


def as_bytes(weight: torch.Tensor) -> torch.Tensor:
    """Return a weight as the kernels load it: bytes as int8. Triton can make no zeros of e4m3."""
    return weight.view(torch.int8) if weight.dtype in (FP8, INT4) else weight


def quantize_tokens(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x [m, in] in e4m3 and the scale of each row, float32 [m, 1]; see ``quantize.quantize_tokens``."""
    q = torch.empty(x.shape, dtype=FP8, device=x.device)
    scale = torch.empty(x.shape[0], 1, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(x.shape[1])
    quantize_tokens_kernel[(x.shape[0],)](
        x, q, scale, K=x.shape[1], BLOCK=block, LARGEST=LARGEST[FP8], num_warps=min(16, max(1, block // 1024))
    )
    return q, scale
