"""Launches the Triton kernels: which one and with which tiles, from the shape alone.

Tiles come from sweeps on an NVIDIA H200 (``sweep_tiles.py``, docs/performance.md): a fixed table, because an
autotuner would run inside a captured graph, and would make two runs of the study differ.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton

from llmstudy.kernels.convert import dequantize_kernel
from llmstudy.kernels.matvec import matvec_kernel
from llmstudy.kernels.tiles import rows_kernel, tile_kernel

INTERPRETED = triton.knobs.runtime.interpret


@dataclass(frozen=True)
class LinearOperand:
    """What the kernels multiply by.

    weight   [out, in], row-major: int8, or the dtype of the activations
    scale    float32 [out] for int8, else None
    bias     [out] or None
    columns, outlier   int64 [c] and [out, c] in 16 bit (static outlier columns), or None
    """

    weight: torch.Tensor
    scale: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    columns: torch.Tensor | None = None
    outlier: torch.Tensor | None = None


# Above this many rows the library's dense product wins over the kernels here (float32 has no tensor cores in IEEE
# precision, so that ``Tile`` serves it for agreement and not for speed).
INT8_ROWS = 64
DENSE_ROWS = 16


@dataclass(frozen=True)
class MatvecTile:
    """One row of x: ``rounds`` times ``block_n`` outputs a program, x in chunks of ``block_k``."""

    block_n: int
    block_k: int
    warps: int
    rounds: int = 1


@dataclass(frozen=True)
class RowsTile:
    """A few rows of x: every warp multiplies its own ``block_k`` columns of a step."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Tile:
    """Any number of rows: the usual tiled product."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int


# (outputs, inputs, gated) → (block_n, warps, rounds) of the fastest tile on an H200: the fused linears of Llama 2.
SWEPT = {
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
}


def fits(m: int, operand: LinearOperand) -> bool:
    """Whether the kernels here are the right way to multiply m rows by the operand."""
    if operand.weight.dtype == torch.int8:
        return m <= INT8_ROWS
    return m == 1 or (m <= DENSE_ROWS and operand.weight.dtype != torch.float32)


def in_integers(in_features: int, dtype: torch.dtype, weight_dtype: torch.dtype) -> bool:
    """Whether the product with one row is computed in integers; its groups of 16 must be whole (``triton_fixed``)."""
    return weight_dtype == torch.int8 and dtype.itemsize == 2 and in_features % 16 == 0


def choose(m: int, n_out: int, in_features: int, dtype: torch.dtype, weight_dtype: torch.dtype, gated: bool):
    """Kernel and tile for m rows of activations in ``dtype``."""
    if m == 1:
        if in_integers(in_features, dtype, weight_dtype):
            tile = _integer_tile(n_out, in_features, gated)
        else:
            tile = _matvec_tile(n_out, in_features, weight_dtype.itemsize, gated)
        return replace(tile, block_k=min(tile.block_k, triton.next_power_of_2(in_features)))
    if dtype == torch.float32:
        return Tile(block_m=16, block_n=32, block_k=32, warps=4, stages=2)
    if m > INT8_ROWS:
        return Tile(block_m=128, block_n=128, block_k=64, warps=8, stages=3)
    block_m = max(8, triton.next_power_of_2(m))
    if weight_dtype.itemsize == 2:
        return RowsTile(block_m, block_n=32, block_k=64, warps=4, stages=3 if gated else 4)
    return _int8_rows_tile(block_m, n_out)


def _integer_tile(n_out: int, in_features: int, gated: bool) -> MatvecTile:
    if (n_out, in_features, gated) in SWEPT:
        block_n, warps, rounds = SWEPT[n_out, in_features, gated]
    else:
        # No more columns a thread than it has registers for.
        warps = 4 if in_features <= 6144 else 8 if in_features <= 16384 else 16
        block_n = 4 if in_features <= 8192 and n_out >= 1024 else 2
        rounds = 1 if gated or n_out < 4096 else 2
    return MatvecTile(block_n, integer_block_k(in_features, warps), warps, rounds)


def integer_block_k(in_features: int, warps: int) -> int:
    """16 weights a thread, which is one load; twice as many as long as that divides the row."""
    block_k = 512 * warps
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


def _int8_rows_tile(block_m: int, n_out: int) -> RowsTile:
    wide = n_out >= 8192
    if block_m == 8:
        return RowsTile(block_m, block_n=16, block_k=128, warps=4, stages=4)
    if block_m == 16:
        return RowsTile(block_m, block_n=32 if wide else 16, block_k=128 if wide else 256, warps=4, stages=3)
    if block_m == 32 and not wide:
        return RowsTile(block_m, block_n=32, block_k=128, warps=4, stages=4)
    return RowsTile(block_m, block_n=32, block_k=64, warps=4, stages=4 if block_m == 32 else 3)


def linear(
    x: torch.Tensor,
    operand: LinearOperand,
    *,
    out: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
    pdl: bool = False,
    tile: MatvecTile | RowsTile | Tile | None = None,
) -> torch.Tensor:
    """``x`` [m, in] contiguous → ``out`` [m, n]; n is half the operand's rows if ``gated`` (gate rows above up rows).

    residual [m, n] is added last. norm [in] is an RMSNorm weight that is applied to x, for one row only. out and norm
    have the dtype of x.
    pdl: the launch may overlap the kernel before it, which must then be one that ends its reads before it returns.
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
        "OUTLIERS": outliers,
        "BIAS": operand.bias is not None,
        "RESIDUAL": residual is not None,
        "GATED": gated,
        "PDL": pdl and not INTERPRETED,
        "FAST": not INTERPRETED,
    }
    # A kernel takes a pointer for every tensor; one that its flags switch off is never read.
    scale, bias, columns, outlier = (
        x if tensor is None else tensor for tensor in (operand.scale, operand.bias, operand.columns, operand.outlier)
    )
    tensors = (scale, bias, columns, outlier, x if residual is None else residual, out)
    options = {"launch_pdl": True} if flags["PDL"] else {}
    if isinstance(tile, MatvecTile):
        vectors = [x, x if norm is None else norm]
        if any(vector.dtype != x.dtype for vector in (*vectors, out)):
            raise ValueError(f"x {x.dtype}, norm {vectors[1].dtype} and out {out.dtype} must have one dtype")
        weight = operand.weight
        fixed = in_integers(in_features, x.dtype, weight.dtype)
        if fixed:
            vectors = [vector.view(torch.int64) for vector in vectors]
            weight = weight.view(torch.int32)
        matvec_kernel[(triton.cdiv(n_out, tile.block_n * tile.rounds),)](
            *vectors, weight, *tensors, n_out, eps,
            **flags, FIXED=fixed, BLOCK_OUTLIERS=triton.next_power_of_2(max(outliers, 1)), NORM=norm is not None,
            BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, ROUNDS=tile.rounds, num_warps=tile.warps, **options,
        )  # fmt: skip
        return out
    if norm is not None:
        raise ValueError("only the matrix-vector kernel applies a norm; give the others normalised rows")
    grid = (triton.cdiv(m, tile.block_m) * triton.cdiv(n_out, tile.block_n),)
    if isinstance(tile, RowsTile):
        kernel, more = rows_kernel, {"WARPS": tile.warps}
    else:
        kernel, more = tile_kernel, {}
    kernel[grid](
        x, operand.weight, *tensors, m, n_out,
        **flags, **more, BLOCK_OUTLIERS=16 if outliers <= 16 else 32, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k, STAGES=tile.stages, num_warps=tile.warps, **options,
    )  # fmt: skip
    return out


def dequantize(q: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """q int8 [out, in] times scale [out] in ``dtype``, at the speed of the memory."""
    n_out, in_features = q.shape
    out = torch.empty(q.shape, dtype=dtype, device=q.device)
    block_k = min(1024, triton.next_power_of_2(in_features))
    dequantize_kernel[(triton.cdiv(n_out, 8), triton.cdiv(in_features, block_k))](
        q, scale, out, n_out, K=in_features, BLOCK_N=8, BLOCK_K=block_k, num_warps=4
    )
    return out
