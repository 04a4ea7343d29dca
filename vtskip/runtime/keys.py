"""The key side of a layer call: which rows give K and V, how they enter the cache, and the mask over all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtskip.runtime.cache import append, skip_layer
from vtskip.runtime.layout import Layout
from vtskip.runtime.slots import RowSlots

if TYPE_CHECKING:
    from vtskip.runtime.execution import Execution


class Keys:
    """K and V of the exposed rows of one execution.

    Attributes:
        all: every row gives K and V and stays in the cache, which then holds what the dense layer's would, padding included
            (zeros where it was not computed).
        whole: K and V are computed of all rows as they are, padding included.
        pos, ok: ``[B, n]`` logical positions and validity of the keys that :meth:`update` has returned.
    """

    def __init__(self, execution: Execution, layout: Layout):
        self.of, self.layout = execution, layout
        plan = execution.plan
        self.all = execution.is_all(plan.expose) and plan.cache is plan.expose
        self.whole = self.all and not execution.packs
        self.pos: Tensor | None = None
        self.ok: Tensor | None = None

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write the rows' K and V ``[.., kv_heads, .., d]`` to the cache; all that may be seen comes back, padded."""
        ex, layout = self.of, self.layout
        if self.all and layout.packed:
            k, v = layout.spread(k, ex.batch), layout.spread(v, ex.batch)
        elif layout.packed:
            k, v = layout.padded(k), layout.padded(v)
        if self.all and not isinstance(ex.stored, RowSlots):
            return self._stock(k, v)
        if self.all:
            index, ok = torch.arange(ex.length, device=k.device).expand(ex.batch, -1), None
        else:
            index, ok = layout.rows.index, layout.rows.ok
        if ex.cache is None:
            self.pos, self.ok = index, ok
            return k, v
        layer = skip_layer(ex.cache, ex.index)
        layer.hold(layout.rows.samples, ex.batch)
        stored = None if self.all else ex.stored_index(layout.rows)
        self.pos, self.ok = layer.visible(ex.past + index, ok)
        return append(ex.cache, ex.index, k, v, (ex.past + index, ok, ex.length, stored))

    def _stock(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """As the dense layer would store it."""
        ex, offset = self.of, 0
        total = ex.past + ex.length
        if ex.cache is not None:
            offset = ex.cache.get_mask_sizes(ex.length, ex.index)[1]
            k, v = (t[:, :, : total - offset] for t in ex.cache.update(k, v, ex.index))  # without free static slots
        self.pos = torch.arange(offset, total, device=k.device).expand(ex.batch, -1)
        return k, v

    def mask(self, kind: str) -> Any:
        assert self.pos is not None
        return self.of.build_mask(self.of.attend, self.pos, self.ok, kind)
