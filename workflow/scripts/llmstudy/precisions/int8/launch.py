"""Launches the Triton kernels: which one and with which tiles, from the shape alone.

Tiles come from the sweep in ``bench_kernels.py`` on an NVIDIA H200 (docs/performance.md): a fixed table, because an
autotuner would run inside a captured graph, and would make two runs of the study differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from llmstudy.precisions.int8 import triton_kernels as kernels

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


@dataclass(frozen=True)
class MatvecTile:
    block_n: int
    block_k: int
    warps: int


@dataclass(frozen=True)
class Tile:
    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    prefetch: int = 0


def matvec_tile(n_out: int, in_features: int, itemsize: int, gated: bool) -> MatvecTile:
    """Tile of the matrix-vector kernel for one row."""
    block_k = min(4096 // itemsize, triton.next_power_of_2(in_features))
    return MatvecTile(block_n=2 if gated else 4, block_k=block_k, warps=4)


def linear_tile(m: int, n_out: int, in_features: int, itemsize: int, gated: bool) -> Tile:
    """Tile of the tensor-core kernel for m rows."""
    if itemsize == 4:  # float32 has no tensor cores in IEEE precision: small tiles, correctness only
        return Tile(block_m=16, block_n=32, block_k=32, warps=4, stages=2)
    if m <= 64:
        return Tile(block_m=max(16, triton.next_power_of_2(m)), block_n=32, block_k=256, warps=4, stages=4)
    return Tile(block_m=128, block_n=128, block_k=64, warps=8, stages=3)


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
    tile: MatvecTile | Tile | None = None,
) -> torch.Tensor:
    """``x`` [m, in] contiguous → ``out`` [m, n]; n is half the operand's rows if ``gated`` (gate rows above up rows).

    residual [m, n] is added last. norm [in] is an RMSNorm weight that is applied to x, for one row only.
    pdl: the launch may overlap the kernel before it, which must then be one that ends its reads before it returns.
    """
    m, in_features = x.shape
    n_out = operand.weight.shape[0] // (2 if gated else 1)
    if out is None:
        out = torch.empty(m, n_out, dtype=x.dtype, device=x.device)
    if tile is None:
        choose = matvec_tile(n_out, in_features, operand.weight.element_size(), gated) if m == 1 else None
        tile = choose or linear_tile(m, n_out, in_features, x.element_size(), gated)
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
    tensors = (operand.weight, scale, bias, columns, outlier, x if residual is None else residual, out)
    options = {"launch_pdl": True} if flags["PDL"] else {}
    if isinstance(tile, MatvecTile):
        kernels.matvec_kernel[(triton.cdiv(n_out, tile.block_n),)](
            x,
            x if norm is None else norm,
            *tensors,
            n_out,
            eps,
            **flags,
            BLOCK_OUTLIERS=triton.next_power_of_2(max(outliers, 1)),
            NORM=norm is not None,
            BLOCK_N=tile.block_n,
            BLOCK_K=tile.block_k,
            num_warps=tile.warps,
            **options,
        )
        return out
    assert norm is None, "the tiled kernel takes normalised rows"
    kernels.tile_kernel[(triton.cdiv(m, tile.block_m) * triton.cdiv(n_out, tile.block_n),)](
        x,
        *tensors,
        m,
        n_out,
        **flags,
        BLOCK_OUTLIERS=16 if outliers <= 16 else 32,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        STAGES=tile.stages,
        PREFETCH=min(tile.prefetch, triton.next_power_of_2(in_features)),
        num_warps=tile.warps,
        **options,
    )
    return out
