"""Rows whose output nothing reads: in the last layer all but those whose logits are asked for, before it vision rows where
no later layer lets them take part. Such a layer computes K and V of them, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from vtskip.plan import ON_HOST, LayerPlan, Planner, RowMap, RowSet

Unread = Literal[
    "none", "vision", "rest"
]  # which rows of a layer's output are not read, if only some logits are asked for
READ, READ_OR_TEXT = (
    "read",
    "read or text",
)  # keys of RowMap.memo: rows whose logits are asked for; these and all text rows


class WholeLayer(nn.Module):
    """Planner of a layer that the method leaves as it is."""

    sees, every_step, compact, skips_vision, needs = "stream", False, False, False, frozenset[str]()

    def forward(self, rows: RowMap, hidden: Tensor) -> LayerPlan:
        return LayerPlan.of(rows.everything)


@dataclass
class Asked:
    """What a forward of the whole model is asked for; at first, every row's logits.

    Attributes:
        columns: logits of so many last rows of each sample; or
        labelled: ``[B, S]`` on the host, the rows at which a label is predicted.
        padding: its loss reads rows of padding, which then have to be those of the stock model.
        layers: whether layers may leave rows out.
        flat: the rows, in the flattened batch, that the decoder returns alone; None where the model picks them itself.
        begun: its base model has been called.
    """

    columns: int = 0
    labelled: np.ndarray | None = None
    padding: bool = False
    layers: bool = True
    flat: Tensor | None = None
    begun: bool = False

    def note(self, rows: RowMap) -> None:
        """Leave the rows that are read in the memo of ``rows``, with their numbers."""
        vision, valid = rows.memo[ON_HOST]
        if not self.layers or rows.bounds or not (self.columns or self.labelled is not None):
            return
        if self.labelled is None:
            read = np.zeros_like(valid)
            read[:, -self.columns :] = valid[:, -self.columns :]
        elif self.labelled.shape == valid.shape:
            read = self.labelled & valid
        else:
            return
        device = rows.valid.device
        mask = torch.from_numpy(read).to(device)
        seen = (read & vision).sum(1).tolist()
        rows.memo[READ] = RowSet(mask, read.sum(1).tolist())
        if any(seen):
            rows.memo[READ_OR_TEXT] = RowSet(rows.text.mask | mask, [t + n for t, n in zip(rows.text_counts, seen)])
        else:
            rows.memo[READ_OR_TEXT] = rows.text


def unread_of(planners: Sequence[Planner | None]) -> list[Unread]:
    """What nothing reads of each layer's output. Known from the planners alone, before any forward."""
    unread: list[Unread] = ["none" for _ in planners]
    unread[-1] = "rest"
    skip = [planner is not None and getattr(planner, "skips_vision", False) for planner in planners]
    last = max((i for i, skips in enumerate(skip) if not skips), default=len(planners))  # last layer with vision rows
    if last < len(planners) - 1:
        unread[last] = "vision"
    return unread


def read_part(plan: LayerPlan, rows: RowMap, unread: Unread, compact: bool, text_too: bool) -> LayerPlan:
    """The part of ``plan`` whose outcome is read; K, V and cache stay. ``plan`` itself where that is not worth it.

    ``text_too``: the plan may leave out text rows. Where counts then, or of vision rows, are not known on the host, those of
    the part are upper bounds.
    """
    attend, read = plan.attend, rows.memo[READ if unread == "rest" else READ_OR_TEXT]
    odd = compact or rows.bounds or (plan.gain_skipped and plan.gain_on == "delta")
    if odd or rows.is_all(read) or not attend.width or attend.packed is not attend:
        return plan
    plain = not text_too and rows.memo[READ_OR_TEXT].counts == rows.text_counts  # all that is read is text, which runs

    def cut(part: RowSet) -> RowSet:
        if plain or rows.is_all(part):
            return read
        few = RowSet(part.mask & read.mask, [min(n, m) for n, m in zip(part.counts, read.counts)])
        few.bounds = True
        return few

    few, gain = cut(attend), plan.gain_row
    if gain is not None and plan.one_set and not plan.gain_skipped:  # which weighs the rows it runs, not the others
        gain = torch.where(attend.mask, gain, 1.0)
    return replace(plan, attend=few, ffn=few if plan.ffn is attend else cut(plan.ffn), gain_row=gain)
