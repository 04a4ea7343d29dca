"""Attention in which every key has a weight, with a gradient that a key of weight 0 has, too. For training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import dropout
from torch.utils.checkpoint import checkpoint

from vtskip.errors import ModelError
from vtskip.runtime.attention import soft_cap
from vtskip.runtime.keys import Keys

if TYPE_CHECKING:
    from vtskip.runtime.execution import Execution

BLOCK = 2**26  # elements of the attention map that are there at a time
HIGHEST = 30.0  # a hidden key's logit above the best visible one, at most: its exponential is only in a gradient


def by_weighted_keys(ex: Execution, q: Tensor, k: Tensor, v: Tensor, keys: Keys, gain: Tensor) -> Tensor:
    """``[B, m, heads, head_dim]`` of padded queries and the keys that ``keys.update`` returned, ``gain`` ``[B, S]``.

    Raises ModelError for a flex mask, whose rows cannot be read.
    """
    if ex.kind == "flex":
        raise ModelError(
            "weights of keys need a mask that can be read: use sdpa, eager or flash attention for training"
        )
    assert keys.pos is not None
    attn, rows = ex.layer.self_attn, ex.attend
    allowed = ex.build_mask(rows, keys.pos, keys.ok, "sdpa")
    visible = allowed if allowed.dtype == torch.bool else allowed > torch.finfo(allowed.dtype).min / 2
    own = ex.past + rows.index[:, :, None] == keys.pos[:, None]
    gain = gain if rows.samples is None else gain[list(rows.samples)]
    place = keys.pos - ex.past
    weight = torch.where(place < 0, 1.0, gain.gather(1, place.clamp(min=0)))
    drop = attn.attention_dropout if attn.training else 0.0
    return weighted_attention(q, k, v, visible, own, weight, attn.scaling, soft_cap(attn), drop)


def weighted_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor,
    own: Tensor,
    weight: Tensor,
    scaling: float,
    cap: float | None = None,
    drop: float = 0.0,
) -> Tensor:
    """``sum_j w_ij exp(s_ij) v_j / sum_j w_ij exp(s_ij)``, in blocks of queries that are computed anew for their gradient.

    Args:
        q: ``[B, heads, m, d]``, k, v ``[B, kv_heads, n, d]``.
        visible: ``[B or 1, 1, m, n]``. own: ``[B, m, n]``, where a key is the query's own row, whose weight is 1.
        weight: ``[B, n]`` of the other keys.
    """
    heads, n = q.shape[1], k.shape[2]
    k, v = (t.repeat_interleave(heads // t.shape[1], 1) for t in (k, v))

    def block(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, start: int) -> Tensor:
        stop = start + q.shape[2]
        seen, mine = visible[:, :, start:stop].expand(len(q), 1, -1, n), own[:, None, start:stop]
        logits = (q @ k.transpose(-1, -2)) * scaling
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        share = torch.where(mine, 1.0, weight[:, None, None].to(logits.dtype))
        lowest = torch.finfo(logits.dtype).min
        peak = logits.detach().masked_fill(~(seen & (share > 0)), lowest).amax(-1, keepdim=True)
        part = (logits - peak).clamp(max=HIGHEST).exp().masked_fill(~seen, 0.0) * share
        part = part / part.sum(-1, keepdim=True).clamp(min=torch.finfo(logits.dtype).tiny)
        return dropout(part, drop, training=drop > 0).to(v.dtype) @ v

    size = max(BLOCK // max(len(q) * heads * n, 1), 1)
    if size >= q.shape[2]:
        return block(q, k, v, weight, 0).transpose(1, 2)
    parts = [
        checkpoint(block, part, k, v, weight, i * size, use_reentrant=False) for i, part in enumerate(q.split(size, 2))
    ]
    return torch.cat(parts, 2).transpose(1, 2)
