"""Ranks within groups in Triton: one launch, by counting, without a sort."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _ranks(Score, Group, Rank, s, s_row, g_row, BM: tl.constexpr, BN: tl.constexpr):
    sample = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    mine = tl.load(Score + sample * s_row + i, mask=i < s, other=0.0)
    group = tl.load(Group + sample * g_row + i, mask=i < s, other=-1)
    highest = tl.max(group)
    lowest = tl.min(tl.where(group < 0, highest, group))
    count = tl.zeros([BM], tl.int32)
    for first in range(0, s, BN):
        j = first + tl.arange(0, BN)
        theirs = tl.load(Group + sample * g_row + j, mask=j < s, other=-1)
        if tl.max(((theirs >= lowest) & (theirs <= highest) & (theirs >= 0)).to(tl.int32)) > 0:
            other = tl.load(Score + sample * s_row + j, mask=j < s, other=0.0)
            # NaN stands before all numbers, as in a descending sort: the number of kept rows is never wrong.
            odd_i, odd_j = (mine != mine)[:, None], (other != other)[None]
            better = (other[None] > mine[:, None]) | (odd_j & (odd_i == 0))
            equal = (other[None] == mine[:, None]) | (odd_j & odd_i)
            before = better | (equal & (j[None] < i[:, None]))
            alike = (theirs[None] == group[:, None]) & (group >= 0)[:, None]
            count += tl.sum((before & alike).to(tl.int32), 1)
    tl.store(Rank + sample * s + i, count, mask=i < s)


def group_ranks(score: Tensor, group: Tensor) -> Tensor:
    """As :func:`vtskip.kernels.reference.group_ranks`; scores of any float type, compared as they are."""
    batch, s = score.shape
    score, group = (t if t.stride(-1) == 1 else t.contiguous() for t in (score.detach(), group))
    rank = torch.empty(batch, s, dtype=torch.int32, device=score.device)
    if rank.numel():
        _ranks[(triton.cdiv(s, 64), batch)](score, group, rank, s, score.stride(0), group.stride(0), BM=64, BN=128)
    return rank
