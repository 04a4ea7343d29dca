"""Attention where text alone asks and every row answers (ShortV): a run of text reads no key behind its own last row.

torch's attention leaves out what lies behind the diagonal where queries and keys are the same rows; of other row sets it
computes every product and hides some. Text before the vision rows would pay for all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vtskip.plan import ON_HOST
from vtskip.runtime.attention import attended
from vtskip.runtime.keys import Keys
from vtskip.runtime.packed import in_order

if TYPE_CHECKING:
    from vtskip.runtime.execution import Execution

Run = tuple[int, int, int]  # queries from the first to before the second see no key from the third on
FEW = 4  # runs that are worth a call of their own
WORTH = 0.8  # of the products, more than which are not


def attended_by_runs(ex: Execution, q: Tensor, k: Tensor, v: Tensor, keys: Keys) -> Tensor:
    """:func:`vtskip.runtime.attention.attended` of padded queries on the keys of this execution, in parts where that is less."""
    attn, runs = ex.layer.self_attn, runs_of(ex, keys)
    if runs is None or k.shape[2] != ex.length:
        return attended(attn, q, k, v, keys.mask, in_order=False)
    mask = mask_of(ex, keys)

    def one(first: int, behind: int, seen: int) -> Tensor:
        shown = mask[:, :, first:behind, :seen]
        return attended(attn, q[:, :, first:behind], k[:, :, :seen], v[:, :, :seen], lambda kind: shown, in_order=False)

    return torch.cat([one(*run) for run in runs], 1)


def runs_of(ex: Execution, keys: Keys) -> list[Run] | None:
    """The runs of text that all samples share, known on the host; None where there are none, or positions do not tell all."""
    rows = ex.rows
    if ex.attend is not rows.text or not keys.all or ex.packs or torch.compiler.is_compiling() or not ex.attend.even:
        return None
    if ex.kind != "sdpa" or rows.bounds or ON_HOST not in rows.memo or not in_order(ex, same=False):
        return None
    if "text runs" not in rows.memo:
        vision, valid = rows.memo[ON_HOST]
        rows.memo["text runs"] = shared_runs(valid & ~vision)
    return rows.memo["text runs"]


def shared_runs(text: np.ndarray) -> list[Run] | None:
    """Runs of ``text`` ``[B, S]``, as many rows in each sample; None where they save little."""
    batch, length = text.shape
    columns = np.nonzero(text)[1].reshape(batch, -1)
    queries = columns.shape[1]
    breaks = (np.flatnonzero((np.diff(columns, axis=1) > 1).any(0)) + 1).tolist()
    runs = [(a, b, int(columns[:, b - 1].max()) + 1) for a, b in zip([0, *breaks], [*breaks, queries]) if b > a]
    few = 1 < len(runs) <= FEW and sum((b - a) * seen for a, b, seen in runs) <= WORTH * queries * length
    return runs if few else None


def mask_of(ex: Execution, keys: Keys) -> Tensor:
    """The mask of all text on all keys; one for every layer where the model gave none."""
    if ex.step.received is not None:
        return keys.mask("sdpa")
    memo = ex.rows.memo
    if "text mask" not in memo:
        memo["text mask"] = keys.mask("sdpa")
    return memo["text mask"]
