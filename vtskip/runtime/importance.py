"""How much of a layer's rows ends at each of them: mass that moves along its attention map, which is never held whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vtskip.plan import LayerPlan, Propagation
from vtskip.runtime.attention import _heads, _split, rotate, soft_cap
from vtskip.runtime.layout import Layout

BLOCK = 2**26  # elements of the part of the map that is there at a time


@torch.no_grad()
def propagated(
    layer: nn.Module, plan: LayerPlan, x: Tensor, kwargs: dict[str, Any], keys: Tensor | None = None
) -> Tensor:
    """The plan's :class:`Propagation` over the rows that attend: ``[B, S]``, fp32 or wider, 0 on the others.

    ``x``: ``[B, S, hidden]``, what enters the layer; ``keys``: what its ``k_proj`` gave, ``[B, S, ...]``, if that is there.
    Every row sees itself and the rows before it, whatever window the layer has.
    """
    assert isinstance(plan.score, Propagation)
    attn, rows = layer.self_attn, Layout(plan.attend, packed=False)
    normed = getattr(layer, layer.vtskip.runtime.parts.attn_in)(rows.take(x))
    embeddings = rows.take_all(*kwargs["position_embeddings"])
    q = rotate(attn, _heads(attn, "q", normed), embeddings)
    k = rotate(attn, _split(attn, "k", attn.k_proj(normed) if keys is None else rows.take(keys)), embeddings)
    real = torch.ones(rows.lead, dtype=torch.bool, device=x.device) if rows.ok is None else rows.ok
    score = spread(q, k, real, plan.score, attn.scaling, soft_cap(attn))
    out = score.new_zeros(x.shape[0] * x.shape[1])
    return out.index_copy(0, rows.index, score.flatten()).view(x.shape[:2])


def spread(q: Tensor, k: Tensor, real: Tensor, how: Propagation, scaling: float, cap: float | None = None) -> Tensor:
    """``[B, n]`` of ``q`` ``[B, heads, n, d]`` and ``k`` ``[B, kv_heads, n, d]``, rotated; rows outside ``real`` have no part.

    The map is made anew in every step, block by block of its queries, unless it is a single block.
    """
    heads, n = q.shape[1], q.shape[2]
    k = k.repeat_interleave(heads // k.shape[1], 1).transpose(-1, -2)
    place = torch.arange(n, device=q.device)

    def block(start: int) -> Tensor:
        """The map's rows ``[B, heads, m, n]`` from ``start`` on."""
        logits = (q[:, :, start : start + size] @ k) * scaling
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / how.temperature
        hidden = (place > place[start : start + size, None]) | ~real[:, None, None]
        return logits.masked_fill(hidden, torch.finfo(logits.dtype).min).softmax(-1)

    size = max(BLOCK // max(len(q) * heads * n, 1), 1)
    whole = block(0) if size >= n else None
    mass = (real / real.sum(1, keepdim=True).clamp(min=1))[:, None, None].to(
        torch.promote_types(q.dtype, torch.float32)
    )
    mass = mass.expand(-1, heads, -1, -1)
    for _ in range(how.steps):
        parts = [mass[..., s : s + size] @ (block(s) if whole is None else whole) for s in range(0, max(n, 1), size)]
        mass = torch.stack(parts).sum(0) * real[:, None, None]
    return mass.squeeze(2).square().mean(1).sqrt()
