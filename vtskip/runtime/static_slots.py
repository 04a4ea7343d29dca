"""Static cache layers with rows left out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer

from vtskip.runtime.slots import RowSlots, Stored, or_true


class StaticSkipLayer(RowSlots, StaticLayer):
    """A static layer in dense-slot mode: every logical row keeps its slot, and the slots of rows left out stay empty.

    Nothing is freed; later steps mask the empty slots. Text steps run the stock ``update`` on the stock tensors, so that a
    compiled decode finds them where they were.

    Attributes:
        holes: ``[B, n]`` True at the logical positions below n whose row was left out; None if there are none.
    """

    holes: Tensor | None = None
    _seen: int | None = None

    @classmethod
    def adopt(cls, layer: StaticLayer) -> StaticSkipLayer:
        """The same tensors under another class: their addresses are known to compiled graphs."""
        new = cls.__new__(cls)
        new.__dict__.update(layer.__dict__)
        return new

    @property
    def seen(self) -> int:  # type: ignore[override]
        """Reads the device once per step that asks; text steps do not."""
        if self._seen is None:
            self._seen = int(self.get_seq_length())
        return self._seen

    @property
    def ragged(self) -> bool:  # type: ignore[override]
        return self.holes is not None

    @property
    def slots(self) -> int:
        return min(self.seen, self.max_cache_len)

    def hold(self, samples: tuple[int, ...] | None, batch: int) -> bool:
        return samples is None

    def run(self) -> Tensor | int:
        return self.seen if self.holes is None else self.seen - self.holes.sum(1)

    def visible(self, pos: Tensor, ok: Tensor | None) -> tuple[Tensor, Tensor | None]:
        n, batch = self.slots, len(pos)
        if not n:
            return pos, ok
        held = torch.arange(self.seen - n, self.seen, device=pos.device).expand(batch, -1)
        if self.holes is None and ok is None:
            return torch.cat([held, pos], 1), None
        return torch.cat([held, pos], 1), torch.cat([self._real(self.seen - n, n, held), or_true(ok, pos)], 1)

    def append(
        self, keys: Tensor, values: Tensor, pos: Tensor, ok: Tensor | None, steps: int, stored: Stored | None = None
    ) -> tuple[Tensor, Tensor]:
        n, start = self.slots, self.seen
        all_keys, all_values = keys, values
        if n:
            all_keys = torch.cat([self.keys[:, :, :n], keys], 2)
            all_values = torch.cat([self.values[:, :, :n], values], 2)
        index, (batch, heads) = pos - start, keys.shape[:2]
        place = index[:, None, :, None]
        self.update(
            keys.new_zeros(batch, heads, steps, keys.shape[3]).scatter(2, place.expand_as(keys), keys),
            values.new_zeros(batch, heads, steps, values.shape[3]).scatter(2, place.expand_as(values), values),
        )
        if stored is not None:
            index, ok = index.gather(1, stored[0]), stored[1]
        if self.holes is not None or ok is not None or index.shape[1] != steps:
            gaps = torch.ones(batch, steps, dtype=torch.bool, device=keys.device).scatter(1, index, ~or_true(ok, index))
            before = gaps.new_zeros(batch, 0) if self.holes is None else self.holes
            self.holes = torch.cat([pad(before, (0, start - before.shape[1])), gaps], 1)
        return all_keys, all_values

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if "rows" in kwargs:
            return self.append(key_states, value_states, *kwargs["rows"])
        self._seen = None
        return super().update(key_states, value_states, *args, **kwargs)

    def real_columns(self, steps: int) -> Tensor:
        """``[B, K]`` False on the empty ones of the key slots that ``update`` with ``steps`` rows will return."""
        assert self.holes is not None
        length, offset = self.get_mask_sizes(steps)
        return self._real(offset, length, self.holes)

    def _real(self, start: int, length: int, like: Tensor) -> Tensor:
        """``[B, length]`` from logical position ``start`` on; positions that are still to come count as real."""
        if self.holes is None:
            return torch.ones(len(like), length, dtype=torch.bool, device=like.device)
        part = self.holes[:, start : start + length]
        return ~pad(part, (0, length - part.shape[1]))

    def reset(self) -> None:
        super().reset()
        self.holes, self.carry, self._seen = None, None, None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        if self.holes is not None:
            self.holes = self.holes.index_select(0, beam_idx.to(self.holes.device))
        if self.carry is not None:
            self.carry = self.carry.index_select(0, beam_idx.to(self.carry.device))


class StaticSlidingSkipLayer(StaticSkipLayer, StaticSlidingWindowLayer):
    """The same over the rows of a sliding window, which the stock layer moves along."""
