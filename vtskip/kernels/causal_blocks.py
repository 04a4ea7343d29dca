"""Causal attention on one CPU thread, in blocks of queries that are given no key behind their own end.

torch's causal kernel for CPUs cuts keys into pieces of 512 and leaves out none that a query sees a part of: up to 512 rows it
multiplies the whole square. Blocks of 64 queries compute half of it, and backward as well. They call that same kernel, below
autograd: above it every block would keep its own output, and a gradient of all keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from vtskip.kernels.packing import PackedRows

BLOCK, LONGEST = 64, 1024  # queries per call, and the most rows of a sample for which that is quicker
FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def by_blocks(device: torch.device, rows: int) -> bool:
    """Whether a batch whose longest sample has ``rows`` causal rows runs block by block.

    Not with several threads: they would wait for one another behind every block, which on a busy machine takes longer than it.
    """
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return alone and BLOCK < rows <= LONGEST and not torch.is_autocast_enabled("cpu")


def takes(q: Tensor, v: Tensor, rows: PackedRows, window: int | None) -> bool:
    """Whether these rows run here: all samples have the same queries and keys, and order alone says who sees whom."""
    fits = by_blocks(q.device, max(rows.lens_q, default=0)) and q.shape[-1] == v.shape[-1]
    return fits and all(rows.causal(sample, window) for sample in range(len(rows.lens_q)))


def attention(q: Tensor, k: Tensor, v: Tensor, rows: PackedRows, scale: float) -> Tensor:
    """``[T, heads, d]`` of packed ``q`` and of ``k``, ``v`` ``[T, kv_heads, d]``, for which :func:`takes` holds."""
    found: Tensor = _Blocks.apply(q, k, v, rows.cu_q, rows.stairs(BLOCK, q.dtype), scale)
    return found


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, cu: tuple[int, ...], stairs: Tensor, scale: float) -> Tensor:
        out, sums = q.new_empty(*q.shape[:2], v.shape[2]), []
        groups = q.shape[1] // k.shape[1]
        keys, values = _spread(k, groups), _spread(v, groups)
        for asking, seen, mask in _blocks(cu, stairs):
            block, logsumexp = FORWARD(
                _form(q[asking]), _form(keys[seen]), _form(values[seen]), attn_mask=mask, scale=scale
            )
            out[asking] = block[0].transpose(0, 1)
            sums.append(logsumexp)
        ctx.save_for_backward(q, k, v, out, stairs, *sums)
        ctx.cu, ctx.scale, ctx.groups = cu, scale, groups
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, stairs, *sums = ctx.saved_tensors
        keys, values = _spread(k, ctx.groups), _spread(v, ctx.groups)
        to_q, to_k, to_v = torch.empty_like(q), torch.zeros_like(keys), torch.zeros_like(values)
        for (asking, seen, mask), logsumexp in zip(_blocks(ctx.cu, stairs), sums):
            rows = (_form(t) for t in (grad[asking], q[asking], keys[seen], values[seen], out[asking]))
            found = BACKWARD(*rows, logsumexp, 0.0, False, attn_mask=mask, scale=ctx.scale)
            in_q, in_k, in_v = (t[0].transpose(0, 1) for t in found)
            to_q[asking] = in_q
            to_k[seen] += in_k
            to_v[seen] += in_v
        return to_q, _gathered(to_k, ctx.groups), _gathered(to_v, ctx.groups), None, None, None


def _blocks(cu: tuple[int, ...], stairs: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Of each sample: the queries of a block, the keys up to its last one, and its mask."""
    block, width = stairs.shape
    for start, end in pairwise(cu):
        for first in range(start, end, block):
            behind = min(first + block, end)
            mask = stairs[: behind - first, width - block - (first - start) :][:, : behind - start]
            yield slice(first, behind), slice(start, behind), mask


def _form(rows: Tensor) -> Tensor:
    """``[n, heads, d]`` as the kernel takes it."""
    return rows.transpose(0, 1)[None]


def _spread(t: Tensor, groups: int) -> Tensor:
    """Keys or values, once for each of the ``groups`` query heads that share them."""
    return t if groups == 1 else t.repeat_interleave(groups, 1)


def _gathered(t: Tensor, groups: int) -> Tensor:
    """The way back, of gradients."""
    return t if groups == 1 else t.unflatten(1, (-1, groups)).sum(2)
