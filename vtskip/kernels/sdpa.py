"""Packed attention by torch's ``scaled_dot_product_attention``, sample by sample: what runs on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from vtskip.kernels.packing import PackedRows


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, rows: PackedRows, scale: float, window: int | None = None
) -> Tensor:
    """See :func:`vtskip.kernels.dispatch.packed_attention`. No mask is made where order alone says who sees whom."""
    parts = []
    for sample, (count, first) in enumerate(zip(rows.lens_q, rows.cu_q)):
        if count:
            keys = slice(rows.cu_k[sample], rows.cu_k[sample + 1])
            part = [t.transpose(0, 1)[None] for t in (q[first : first + count], k[keys], v[keys])]
            parts.append(_one(part, rows, sample, scale, window))
    return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else torch.zeros_like(q)


def _one(qkv: list[Tensor], rows: PackedRows, sample: int, scale: float, window: int | None) -> Tensor:
    """One sample, ``[1, heads, n, d]`` each -> ``[n, heads, d]``."""
    q, k, v = qkv
    causal = rows.causal(sample, window)
    mask = None if causal else rows.mask(sample, window)
    grouped = q.shape[1] != k.shape[1]
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped)
    return out[0].transpose(0, 1)
