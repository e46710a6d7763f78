"""The decode step on CUDA: a chain of Triton launches over fixed buffers, five kernels a layer for one sequence."""

from __future__ import annotations

import math

import torch
import triton
from torch import nn

from llmstudy.kernels import decode as kernels
from llmstudy.kernels.launch import INTERPRETED, LinearOperand, fits, linear
from llmstudy.kernels.linear import QuantizedLinear
from llmstudy.runtimes.graph.layer import StaticCache, rotary_table, run_layers
from llmstudy.runtimes.graph.prompt import swiglu
from llmstudy.runtimes.graph.weights import DenseLinear, LlamaWeights

TOKEN_BLOCK = 32
# Heads whose partial results the last program of an attention launch merges at once: for more, Triton passes the
# weights of the parts through shared memory one after the other.
MERGE_HEADS = 4
# Programs that an attention launch should have: eight for each of a large GPU's 132 multiprocessors, since each waits
# for a few dependent loads and little else.
ATTENTION_PROGRAMS = 1056


class DecodeStep:
    """Buffers of one workload and the launches between them: the ``layer.Operations`` of one token a sequence.

    ``position`` int32 [batch] is the position of the next token, ``x`` [batch, hidden] its embedding, ``tokens`` int64
    [batch, new_tokens] the generated tokens. ``run`` advances all three by one token and never waits for the host, so
    that one captured graph of it serves every step.
    """

    def __init__(self, weights: LlamaWeights, batch: int, prompt_tokens: int, new_tokens: int):
        self.weights, self.batch = weights, batch
        self.prompt_tokens, self.new_tokens = prompt_tokens, new_tokens
        length = prompt_tokens + new_tokens
        self.cache = StaticCache.allocate(weights, batch, length)
        self.cos, self.sin = rotary_table(weights, length)
        device, dtype = weights.device, weights.dtype
        self.position = torch.zeros(batch, dtype=torch.int32, device=device)
        self.tokens = torch.zeros(batch, new_tokens, dtype=torch.int64, device=device)
        self.x = torch.zeros(batch, weights.hidden, dtype=dtype, device=device)
        self.normed = torch.empty_like(self.x)
        self.attended = torch.empty(batch, weights.heads * weights.head_dim, dtype=dtype, device=device)
        self.logits = torch.zeros(batch, weights.vocabulary, dtype=dtype, device=device)

        programs = batch * weights.kv_heads
        group = weights.heads // weights.kv_heads
        self.splits = attention_splits(programs, length)
        self.group_block = max(16, triton.next_power_of_2(group))
        self.merge_block = min(MERGE_HEADS, triton.next_power_of_2(group))
        self.dim_block = max(16, triton.next_power_of_2(weights.head_dim))
        self.partial = torch.empty(programs, group, self.splits, self.dim_block, dtype=torch.float32, device=device)
        self.stats = torch.empty(programs, 2, group, self.splits, dtype=torch.float32, device=device)
        self.arrivals = torch.zeros(programs, dtype=torch.int32, device=device)
        # Programmatic dependent launch needs Hopper. A kernel that overlaps its predecessor, of whatever library, waits
        # for it before it reads what that wrote; only this project's kernels can begin before.
        self.pdl = weights.fused and not INTERPRETED and torch.cuda.get_device_capability(device) >= (9, 0)
        self.attention_warps = attention_warps(self.group_block, self.dim_block)
        self.first = True

    def run(self) -> None:
        """Launch one step."""
        self.first = True
        run_layers(self.weights.layers, self, self.x)
        self.project(self.x, self.weights.head, norm=self.weights.norm, out=self.logits)
        self.sample(pdl=self.pdl)

    def sample(self, pdl: bool = False) -> None:
        """Take the next token from ``logits``; advance position, tokens and x."""
        weights = self.weights
        kernels.sample_kernel[(self.batch,)](
            self.logits, weights.embedding, self.position, self.tokens, self.x, self.prompt_tokens, self.new_tokens,
            VOCABULARY=weights.vocabulary, HIDDEN=weights.hidden, BLOCK=4096,
            HIDDEN_BLOCK=triton.next_power_of_2(weights.hidden), PDL=pdl, num_warps=8, **_overlap(pdl),
        )  # fmt: skip

    def project(
        self,
        x: torch.Tensor,
        module: nn.Module,
        norm: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
        gated: bool = False,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See ``layer.Operations``: fused as far as possible. A residual changes in place."""
        # The first launch of a step follows whatever ran before: it must not overlap that.
        pdl, self.first = self.pdl and not self.first, False
        operand = operand_of(module, self.batch)
        if norm is not None and (self.batch > 1 or operand is None):
            x = self._rms_norm(x, norm, pdl)
            norm, pdl = None, self.pdl
        if operand is not None and fits(x, operand):
            out = residual if out is None else out
            return linear(x, operand, out=out, residual=residual, norm=norm, eps=self.weights.eps, gated=gated, pdl=pdl)
        y = module(x)
        if gated:
            y = swiglu(y)
        if residual is not None:
            return residual.add_(y)
        return y if out is None else out.copy_(y)

    def _rms_norm(self, x: torch.Tensor, norm: torch.Tensor, pdl: bool) -> torch.Tensor:
        width = x.shape[1]
        kernels.rms_norm_kernel[(self.batch,)](
            x, x, norm, self.normed, self.weights.eps,
            WIDTH=width, BLOCK=triton.next_power_of_2(width), ADD=False, PDL=pdl, num_warps=8, **_overlap(pdl),
        )  # fmt: skip
        return self.normed

    def attend(self, index: int, qkv: torch.Tensor) -> torch.Tensor:
        """See ``layer.Operations``."""
        weights, layer = self.weights, self.weights.layers[index]
        kernels.attention_kernel[(self.batch * weights.kv_heads, self.splits)](
            qkv, self.cache.keys[index], self.cache.values[index], self.cos, self.sin, self.position, self.partial,
            self.stats, self.arrivals, self.attended, layer.q_norm, layer.k_norm, self.cache.length,
            weights.softmax_scale * math.log2(math.e), weights.eps,
            HEADS=weights.heads, KV_HEADS=weights.kv_heads, HEAD_DIM=weights.head_dim, SPLITS=self.splits,
            GROUP_BLOCK=self.group_block, MERGE_BLOCK=self.merge_block, DIM_BLOCK=self.dim_block,
            TOKEN_BLOCK=TOKEN_BLOCK, WINDOW=layer.window or 0, NORM=layer.q_norm is not None, PDL=self.pdl,
            num_warps=self.attention_warps, **_overlap(self.pdl),
        )  # fmt: skip
        return self.attended


def attention_splits(programs: int, length: int) -> int:
    """Return the shares that an attention launch divides the context into: a power of two, 1 if heads are enough."""
    wanted = max(1, min(ATTENTION_PROGRAMS // programs, triton.cdiv(length, TOKEN_BLOCK), 32))
    return triton.next_power_of_2(wanted + 1) // 2


def attention_warps(group_block: int, dim_block: int) -> int:
    """Return the warps of an attention program: two, unless the queries of its group need the registers of four."""
    return 4 if group_block * dim_block > 2048 else 2


def operand_of(module: nn.Module, rows: int) -> LinearOperand | None:
    """Return what the kernels multiply ``rows`` rows by, or None for a projection that only its module can compute."""
    if isinstance(module, QuantizedLinear):
        return None if module.quantizes(rows) else module.operand
    if isinstance(module, DenseLinear):
        return LinearOperand(module.weight, None, module.bias)
    return None


def _overlap(pdl: bool) -> dict[str, bool]:
    return {"launch_pdl": True} if pdl else {}
