"""Packed attention by torch's ``scaled_dot_product_attention``, sample by sample: what runs on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from vtskip.kernels import causal_blocks
from vtskip.kernels.packing import PackedRows, Segment

FEW = 4  # segments of a sample that are worth a call of their own


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, rows: PackedRows, scale: float, window: int | None = None
) -> Tensor:
    """See :func:`vtskip.kernels.dispatch.packed_attention`. No mask is made where order alone says who sees whom, and no
    product of a run of queries with keys behind its last one."""
    if causal_blocks.takes(q, v, rows, window):
        return causal_blocks.attention(q, k, v, rows, scale)
    parts = []
    for sample, (count, first) in enumerate(zip(rows.lens_q, rows.cu_q)):
        if count:
            keys = slice(rows.cu_k[sample], rows.cu_k[sample + 1])
            part = [t.transpose(0, 1)[None] for t in (q[first : first + count], k[keys], v[keys])]
            parts += [_one(part, rows, sample, run, scale, window) for run in _runs(rows, sample)]
    return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else torch.zeros_like(q)


def _runs(rows: PackedRows, sample: int) -> list[Segment]:
    """The segments of a sample, counted from its first query and key; all of it as one where there are many or none."""
    first, behind = rows.cu_q[sample], rows.cu_q[sample + 1]
    found = [Segment(s.q0 - first, s.q1 - first, 0, s.k1 - s.k0) for s in rows.segments or () if first <= s.q0 < behind]
    return found if 1 < len(found) <= FEW else [Segment(0, behind - first, 0, rows.lens_k[sample])]


def _one(qkv: list[Tensor], rows: PackedRows, sample: int, run: Segment, scale: float, window: int | None) -> Tensor:
    """Queries of one sample, ``[1, heads, n, d]`` each -> ``[queries of the run, heads, d]``."""
    queries, keys = slice(run.q0, run.q1), slice(run.k0, run.k1)
    q, k, v = qkv[0][:, :, queries], qkv[1][:, :, keys], qkv[2][:, :, keys]
    causal = rows.causal(sample, window)
    mask = None if causal else rows.mask(sample, window)[queries, keys]
    grouped = q.shape[1] != k.shape[1]
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped)
    return out[0].transpose(0, 1)
