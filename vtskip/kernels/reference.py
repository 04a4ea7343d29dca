"""Every operation of this folder in plain torch, in fp32 or wider: the truth for tests and the baseline of benchmarks.

Rows are packed: ``[T, ...]`` with the samples one after another and no padding between them, ``cu`` ``[B + 1]`` their
starts. Rows of a sample are in the order of their positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def visible_ranges(
    q_pos: Tensor, k_pos: Tensor, cu_q: Tensor, cu_k: Tensor, window: int | None = None
) -> tuple[Tensor, Tensor]:
    """Which keys each query sees, causally by position: packed keys ``lo`` to ``hi - 1``, int32 ``[Tq]`` each.

    A key is visible to a query of its own sample at or after its position, and with ``window`` less than so many positions
    before it. Nothing is read on the host. Both ranges never decrease along the packed queries.
    """
    sample_q, sample_k = (
        torch.bucketize(torch.arange(len(pos), device=pos.device), cu[1:], right=True)
        for pos, cu in ((q_pos, cu_q), (k_pos, cu_k))
    )
    far = 1 << 40  # no position gets there
    codes = sample_k * far + k_pos
    hi = torch.searchsorted(codes, sample_q * far + q_pos, right=True)
    lo = cu_k[sample_q].long()
    if window is not None:
        lo = torch.maximum(lo, torch.searchsorted(codes, sample_q * far + q_pos - window, right=True))
    return torch.minimum(lo, hi).int(), hi.int()


def gathered_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lo: Tensor,
    hi: Tensor,
    scale: float,
    key_ok: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention of packed queries on packed keys; queries and keys may be different rows.

    Args:
        q: ``[Tq, heads, d]``; k, v: ``[Tk, kv_heads, d]``, each shared by ``heads / kv_heads`` heads in order.
        lo, hi: the keys of each query, see :func:`visible_ranges`. key_ok: ``[Tk]``, False on keys nobody sees.
        softcap: logits become ``softcap * tanh(logits / softcap)`` (Gemma 2).

    Returns:
        ``[Tq, heads, d]`` in q's type; zeros where a query sees no key.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    group = q.shape[1] // k.shape[1]
    k, v = (t.to(wide).repeat_interleave(group, dim=1) for t in (k, v))
    place = torch.arange(k.shape[0], device=q.device)
    seen = (place >= lo[:, None]) & (place < hi[:, None])
    if key_ok is not None:
        seen = seen & key_ok
    logits = torch.einsum("qhd,khd->hqk", q.to(wide), k) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    weights = logits.masked_fill(~seen, torch.finfo(wide).min).softmax(-1).masked_fill(~seen, 0)
    return torch.einsum("hqk,khd->qhd", weights, v).to(q.dtype)


def gather_norm(x: Tensor, index: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """Rows ``index`` ``[m]`` of ``x`` ``[T, D]``, and the same through an RMS norm: ``row / rms * (offset + weight)``.

    ``offset`` is 1 for Gemma's norms. The statistic and the product are fp32 or wider, the results in x's type.
    """
    rows = x.index_select(0, index)
    wide = rows.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * (offset + weight.to(wide.dtype))
    return rows, normed.to(x.dtype)


def scatter_update(
    base: Tensor,
    index: Tensor,
    rows: Tensor,
    gain: Tensor | None = None,
    mode: str = "add",
    ok: Tensor | None = None,
    fresh: bool = False,
) -> Tensor:
    """A copy of ``base`` ``[T, D]`` with other rows ``index`` ``[m]`` (distinct), in base's type.

    Args:
        rows: ``[m, D]`` of any type. gain: ``[m]`` router weights, or None for 1.
        mode: ``add``: ``base + gain * rows`` (a residual); ``write``: ``gain * rows``; ``blend``:
            ``base + gain * (rows - base)``. Computed in fp32 or wider.
        ok: ``[m]``, False where the base stays as it is (fillers).
        fresh: ``base`` is contiguous and nobody else's: it may be written to instead, where no gradient is recorded.
    """
    wide = torch.promote_types(base.dtype, torch.float32)
    old, new = base.index_select(0, index), rows.to(wide)
    if mode == "blend":
        new = new - old.to(wide)
    if gain is not None:
        new = new * gain[:, None].to(wide)
    if mode != "write":
        new = old.to(wide) + new
    new = new.to(base.dtype)
    return base.index_copy(0, index, new if ok is None else torch.where(ok[:, None], new, old))


def gather_rows(index: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Rows ``index`` ``[m]`` of every tensor ``[T, ...]``. Shorter ones are shared: row ``index % rows`` of them."""
    longest = max((len(t) for t in tensors), default=0)
    return tuple(t.index_select(0, index if len(t) == longest else index % max(len(t), 1)) for t in tensors)


def scatter_rows(index: Tensor, bases: Sequence[Tensor], rows: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """A copy of every base ``[T, ...]`` with ``rows`` ``[m, ...]`` written at ``index`` ``[m]`` (distinct), in base's type."""
    return tuple(b.index_copy(0, index, r.to(b.dtype)) for b, r in zip(bases, rows))


def group_ranks(score: Tensor, group: Tensor) -> Tensor:
    """The place of every row among those of its group, the best first: ``[B, S]`` int32 for ``score``, ``group`` ``[B, S]``.

    Rows of equal score stand in sequence order, NaN before all numbers, as a stable descending sort has it; rows of group
    -1 belong to no group and get 0.
    """
    wide = torch.promote_types(score.dtype, torch.float32)
    score, place = score.to(wide), torch.arange(score.shape[1], device=score.device)
    mine, other = score[:, :, None], score[:, None, :]
    better = (other > mine) | (other.isnan() & ~mine.isnan())
    equal = (other == mine) | (other.isnan() & mine.isnan())
    before = better | (equal & (place[None, :] < place[:, None]))
    return (before & (group[:, :, None] == group[:, None, :]) & (group >= 0)[:, :, None]).sum(-1).int()
