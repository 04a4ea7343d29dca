"""Packed attention by torch's flex attention: on request, for comparison."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, lo: Tensor, hi: Tensor, scale: float, key_ok: Tensor | None, softcap: float | None
) -> Tensor:
    """As :func:`vtskip.kernels.reference.gathered_attention`, over one sequence of all samples with a block mask."""
    from torch.nn.attention.flex_attention import create_block_mask

    if not len(q) or not len(k):
        return torch.zeros_like(q)

    def visible(b: Tensor, h: Tensor, row: Tensor, key: Tensor) -> Tensor:
        seen = (key >= lo[row]) & (key < hi[row])
        return seen if key_ok is None else seen & key_ok[key]

    def bent(logit: Tensor, b: Tensor, h: Tensor, row: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(logit / softcap)

    mask = create_block_mask(visible, None, None, len(q), len(k), device=q.device, _compile=q.is_cuda)
    out = _flex(q.is_cuda)(
        *(t.transpose(0, 1)[None] for t in (q, k, v)),
        score_mod=None if softcap is None else bent,
        block_mask=mask,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out[0].transpose(0, 1)


@functools.cache
def _flex(compiled: bool) -> Any:
    """Uncompiled it makes the whole matrix of logits: good for tests alone."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if compiled else flex_attention
