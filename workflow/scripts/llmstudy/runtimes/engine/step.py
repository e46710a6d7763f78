"""One decode step as a chain of Triton launches over fixed buffers: five kernels a layer for one sequence."""

from __future__ import annotations

import math

import torch
import triton
from torch import nn

from llmstudy.kernels import decode as kernels
from llmstudy.kernels.launch import INTERPRETED, LinearOperand, fits, linear
from llmstudy.kernels.linear import Int8Linear, W8A8Linear
from llmstudy.runtimes.engine.forward import StaticCache, rotary_table
from llmstudy.runtimes.engine.prompt import swiglu
from llmstudy.runtimes.engine.weights import DenseLinear, LlamaWeights

TOKEN_BLOCK = 32
# Heads whose partial results the last program of an attention launch merges at once: for more, Triton passes the
# weights of the parts through shared memory one after the other.
MERGE_HEADS = 4
# Programs that an attention launch should have: eight for each of a large GPU's 132 multiprocessors, since each waits
# for a few dependent loads and little else.
ATTENTION_PROGRAMS = 1056


class DecodeStep:
    """Buffers of one workload and the launches between them.

    ``position`` int32 [batch] is where the next token goes, ``x`` [batch, hidden] its embedding, ``tokens`` int64
    [batch, new_tokens] what was generated. ``run`` advances all three by one token and never touches the host, so that
    one captured graph of it serves every step.
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
        # Programmatic dependent launch needs Hopper. A kernel that overlaps its predecessor waits for it before it
        # reads what that wrote, whoever's kernel it is; ours are the ones that can begin before.
        self.pdl = weights.fused and not INTERPRETED and torch.cuda.get_device_capability(device) >= (9, 0)
        self.attention_warps = attention_warps(self.group_block, self.dim_block)

    def run(self) -> None:
        """Launch one step."""
        weights = self.weights
        for index, layer in enumerate(weights.layers):
            qkv = self._project(self.x, layer.qkv, norm=layer.input_norm, first=index == 0)
            self._attend(index, qkv)
            self._project(self.attended, layer.output, residual=self.x)
            inner = self._project(self.x, layer.gate_up, norm=layer.post_norm, gated=True)
            self._project(inner, layer.down, residual=self.x)
        self._project(self.x, weights.head, norm=weights.norm, out=self.logits)
        self.sample(pdl=self.pdl)

    def sample(self, pdl: bool = False) -> None:
        """Next token from ``logits``; moves position, tokens and x on."""
        weights = self.weights
        kernels.sample_kernel[(self.batch,)](
            self.logits,
            weights.embedding,
            self.position,
            self.tokens,
            self.x,
            self.prompt_tokens,
            self.new_tokens,
            VOCABULARY=weights.vocabulary,
            HIDDEN=weights.hidden,
            BLOCK=4096,
            HIDDEN_BLOCK=triton.next_power_of_2(weights.hidden),
            PDL=pdl,
            num_warps=8,
            **_overlap(pdl),
        )

    def _project(
        self,
        x: torch.Tensor,
        module: nn.Module,
        norm: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
        gated: bool = False,
        out: torch.Tensor | None = None,
        first: bool = False,
    ) -> torch.Tensor:
        """norm → projection → swiglu or residual, fused as far as possible; a residual changes in place."""
        # The first launch of a step follows whatever ran before: it must not overlap that.
        pdl = self.pdl and not first
        operand = operand_of(module, self.batch)
        if norm is not None and (self.batch > 1 or operand is None):
            x = self._rms_norm(x, norm, pdl)
            norm, pdl = None, self.pdl
        if operand is not None and fits(self.batch, operand):
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
            x,
            x,
            norm,
            self.normed,
            self.weights.eps,
            WIDTH=width,
            BLOCK=triton.next_power_of_2(width),
            ADD=False,
            PDL=pdl,
            num_warps=8,
            **_overlap(pdl),
        )
        return self.normed

    def _attend(self, index: int, qkv: torch.Tensor) -> None:
        weights = self.weights
        kernels.attention_kernel[(self.batch * weights.kv_heads, self.splits)](
            qkv,
            self.cache.keys[index],
            self.cache.values[index],
            self.cos,
            self.sin,
            self.position,
            self.partial,
            self.stats,
            self.arrivals,
            self.attended,
            self.cache.length,
            weights.softmax_scale * math.log2(math.e),
            HEADS=weights.heads,
            KV_HEADS=weights.kv_heads,
            HEAD_DIM=weights.head_dim,
            SPLITS=self.splits,
            GROUP_BLOCK=self.group_block,
            MERGE_BLOCK=self.merge_block,
            DIM_BLOCK=self.dim_block,
            TOKEN_BLOCK=TOKEN_BLOCK,
            PDL=self.pdl,
            num_warps=self.attention_warps,
            **_overlap(self.pdl),
        )


def attention_splits(programs: int, length: int) -> int:
    """Into how many shares an attention launch divides the context: a power of two, one if there are enough heads."""
    wanted = max(1, min(ATTENTION_PROGRAMS // programs, triton.cdiv(length, TOKEN_BLOCK), 32))
    return triton.next_power_of_2(wanted + 1) // 2


def attention_warps(group_block: int, dim_block: int) -> int:
    """Warps of an attention program: two, unless the queries of its group would not fit into their registers."""
    return 4 if group_block * dim_block > 2048 else 2


def operand_of(module: nn.Module, rows: int) -> LinearOperand | None:
    """What the kernels multiply ``rows`` rows by, or None for a projection that only its own module can compute."""
    if isinstance(module, W8A8Linear) and module.quantises(rows):
        return None
    if isinstance(module, Int8Linear):
        return module.operand
    if isinstance(module, DenseLinear):
        return LinearOperand(module.weight, None, module.bias)
    return None


def _overlap(pdl: bool) -> dict[str, bool]:
    return {"launch_pdl": True} if pdl else {}
