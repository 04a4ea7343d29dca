"""Scoring vision rows and keeping the best of each group."""

from typing import Literal

import torch
from torch import Tensor, nn

from vtskip.plan import Rounding, RowMap

_MASK63 = (1 << 63) - 1
AlwaysKeep = Literal["none", "first", "last"]


class Router(nn.Module):
    """One linear score per row: ``[B, S, hidden] -> [B, S]`` logits (``[B, S, outputs]``), computed in fp32 or wider.

    Ranking bf16 scores loses part of the top-k to ties, so neither the product nor the result is ever narrower than fp32.
    ``std`` of the initial weight; zero bias, or none.
    """

    def __init__(self, hidden: int, std: float = 0.02, seed: int = 0, outputs: int = 1, bias: bool = True):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(outputs, hidden, generator=generator) * std if std else torch.zeros(outputs, hidden)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, hidden: Tensor) -> Tensor:
        dtype = torch.promote_types(torch.promote_types(hidden.dtype, self.weight.dtype), torch.float32)
        bias = None if self.bias is None else self.bias.to(dtype)
        return nn.functional.linear(hidden.to(dtype), self.weight.to(dtype), bias).squeeze(-1)


def topk_per_group(score: Tensor, rows: RowMap, keep: float, rounding: Rounding = "ceil") -> Tensor:
    """``[B, S]`` bool: the ``rows_to_keep(keep, n)`` best-scored rows of every group of n; ties go to the earlier row."""
    rank = (rows.ranks or group_ranks)(score.detach(), rows.group)
    return (rank < rows.group_keep(keep, rounding)) & (rows.group >= 0)


def group_ranks(score: Tensor, group: Tensor) -> Tensor:
    """``[B, S]``: the place of each row among those of its group ``[B, S]``, the best first, then in sequence order."""
    order = score.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, group.gather(1, order).argsort(dim=1, stable=True))  # by group, best first
    group = group.gather(1, order)
    place = torch.arange(score.shape[1], device=score.device)
    first = torch.nn.functional.pad((group[:, 1:] != group[:, :-1]).long(), (1, 0)) * place
    rank = place - first.cummax(dim=1).values
    return torch.empty_like(rank).scatter_(1, order, rank)


def favour(score: Tensor, rows: RowMap, which: AlwaysKeep) -> Tensor:
    """``score`` with the first or last row of every group put before all others."""
    if which == "none":
        return score
    place = rows.offset == (0 if which == "first" else rows.group_size - 1)
    return score.masked_fill(place & rows.vision, torch.inf)


def evenly_per_group(rows: RowMap, keep: float) -> Tensor:
    """``[B, S]`` bool: rows at equal distances inside each group, the first one included."""
    kept = rows.group_keep(keep)
    return rows.vision & (rows.offset * kept % rows.group_size.clamp(min=1) < kept)


def position_noise(position: Tensor, seed: int) -> Tensor:
    """A number in [0, 1) per content position and seed (splitmix64): equal on every device, batch and chunking."""
    x = position * -7046029254386353131 + (seed + 1) * 2654435769
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        x = (x ^ ((x >> shift) & (_MASK63 >> (shift - 1)))) * factor
    x = x ^ ((x >> 31) & (_MASK63 >> 30))
    return (x & ((1 << 53) - 1)).double() / (1 << 53)


def gumbel_noise(position: Tensor, seed: int) -> Tensor:
    """Standard Gumbel noise per content position and seed: the best k of ``logits + noise`` are k draws without replacement
    from ``softmax(logits)`` (Gumbel-top-k, arXiv 1903.06059). The same when a step is recomputed, on any device."""
    return -(-(position_noise(position, seed) + 2.0**-54).log()).log()
