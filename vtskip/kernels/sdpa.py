"""Packed attention by torch's ``scaled_dot_product_attention``, sample by sample: what runs on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from vtskip.kernels.packing import PackedRows, Segment

FEW = 4  # segments of a sample that are worth a call of their own
BLOCK, LONGEST = 64, 1024  # queries per call by blocks, and the most rows of a sample for which that is quicker


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, rows: PackedRows, scale: float, window: int | None = None
) -> Tensor:
    """See :func:`vtskip.kernels.dispatch.packed_attention`. No mask is made where order alone says who sees whom, and no
    product of a run of queries with keys behind its last one."""
    parts: list[Tensor] = []
    for sample, (count, first) in enumerate(zip(rows.lens_q, rows.cu_q)):
        if count:
            keys = slice(rows.cu_k[sample], rows.cu_k[sample + 1])
            part = [t.transpose(0, 1)[None] for t in (q[first : first + count], k[keys], v[keys])]
            for run in _runs(rows, sample):
                parts += _one(part, rows, sample, run, scale, window)
    return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else torch.zeros_like(q)


def _runs(rows: PackedRows, sample: int) -> list[Segment]:
    """The segments of a sample, counted from its first query and key; all of it as one where there are many or none."""
    first, behind = rows.cu_q[sample], rows.cu_q[sample + 1]
    found = [Segment(s.q0 - first, s.q1 - first, 0, s.k1 - s.k0) for s in rows.segments or () if first <= s.q0 < behind]
    return found if 1 < len(found) <= FEW else [Segment(0, behind - first, 0, rows.lens_k[sample])]


def by_blocks(device: torch.device, rows: int) -> bool:
    """Whether :func:`packed_attention` runs a sample of ``rows`` causal rows block by block.

    torch's causal kernel for CPUs cuts keys into pieces of 512 and leaves out none that a query sees a part of: up to 512 rows
    it multiplies the whole square. A block of queries that is given the keys up to its own end does half of it, backward too.
    Not with several threads: they would wait for one another behind every block, which on a busy machine takes longer than it.
    """
    return device.type == "cpu" and BLOCK < rows <= LONGEST and torch.get_num_threads() == 1


def _one(
    qkv: list[Tensor], rows: PackedRows, sample: int, run: Segment, scale: float, window: int | None
) -> list[Tensor]:
    """Queries of one sample, ``[1, heads, n, d]`` each -> ``[queries, heads, d]`` of the run, in parts."""
    queries, keys = slice(run.q0, run.q1), slice(run.k0, run.k1)
    q, k, v = qkv[0][:, :, queries], qkv[1][:, :, keys], qkv[2][:, :, keys]
    causal = rows.causal(sample, window)
    if causal and by_blocks(q.device, q.shape[2]):
        return _causal_by_blocks(q, k, v, rows.stairs(BLOCK, q.dtype), scale)
    return [_sdpa(q, k, v, scale, None if causal else rows.mask(sample, window)[queries, keys], causal)]


def _causal_by_blocks(q: Tensor, k: Tensor, v: Tensor, stairs: Tensor, scale: float) -> list[Tensor]:
    blocks = []
    for first in range(0, q.shape[2], BLOCK):
        behind = min(first + BLOCK, q.shape[2])
        mask = stairs[: behind - first, stairs.shape[1] - BLOCK - first :][:, :behind]
        blocks.append(_sdpa(q[:, :, first:behind], k[:, :, :behind], v[:, :, :behind], scale, mask))
    return blocks


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None, causal: bool = False) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped)
    return out[0].transpose(0, 1)
