"""Cache layers that may hold only some of the rows that passed by, while every length they report stays logical."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from vtskip.runtime.room import Room, in_place, range_of

Stored = tuple[Tensor, Tensor | None]
Rows = tuple[Tensor, Tensor | None, int, Stored | None]  # pos, ok, steps, stored of ``append``


class RowSlots:
    """What the executor asks of a cache layer beside the stock interface.

    Attributes:
        seen: logical length, the number of rows that passed by, kept or not.
        ragged: True once the slots are not simply the positions 0 to seen - 1.
        carry: ``[B, ...]``, a method's per-sample decision for later steps, or None.
    """

    seen: int
    ragged: bool
    carry: Tensor | None = None

    @property
    def slots(self) -> int:
        """Rows held per sample, of a static layer those in use."""
        raise NotImplementedError

    def visible(self, pos: Tensor, ok: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Positions and validity of all keys that the next ``append`` of rows ``pos``, ``ok`` will return."""
        raise NotImplementedError

    def append(
        self, keys: Tensor, values: Tensor, pos: Tensor, ok: Tensor | None, steps: int, stored: Stored | None = None
    ) -> tuple[Tensor, Tensor]:
        """Add rows and return all K/V they may attend to.

        Args:
            keys, values: ``[B, heads, m, head_dim]`` of the new rows; ``pos``, ``ok`` ``[B, m]``.
            steps: by how much the logical length grows (rows of the forward, kept or not).
            stored: index into the m rows and validity, ``[B, c]`` each, if only some of them stay for later forwards.
        """
        raise NotImplementedError

    def hold(self, samples: tuple[int, ...] | None, batch: int) -> bool:
        """Get ready for rows of these samples alone (None: of all); False if that cannot be, and rows of all must come."""
        raise NotImplementedError

    def run(self) -> Tensor | int:
        """Rows of each sample that ran in this layer so far, ``[B]``, or one number for all."""
        raise NotImplementedError


class SkipCacheLayer(RowSlots, DynamicLayer):
    """K/V of some of the rows seen so far, and nothing else.

    The first rows take the memory they need. From the second step on they lie in :class:`Room`, which has up to a quarter
    more (64 columns at least); after ``crop`` up to twice that stays free. Rows held are counted without what is free.

    Attributes:
        keys, values: ``[B, heads, slots, head_dim]``, views of the room where there is one.
        room: None as long as nothing was added to the first rows, after changes of the samples and while gradients are on.
        pos: ``[B, slots]`` logical position of each slot; None before the first row.
        ok: ``[B, slots]`` False on fillers (samples of a batch keep different numbers of rows); None when all are real.
        window: sliding window of the layer, in logical positions, or None.
        record_past: rows that leave the window stay until the next ``crop`` (speculative decoding steps back).
        samples: the places in a batch of ``batch`` samples that hold any rows, where not all do: ``B`` above is then their
            number. None: all.
        left: how many rows of each sample have left the window, ``[B]`` or one number for all.
    """

    def __init__(self, window: int | None = None):
        super().__init__()
        self.window, self.is_sliding = window, window is not None
        self.seen, self.ragged, self.record_past = 0, False, False
        self.keys: Any
        self.values: Any
        self.pos: Tensor | None = None
        self.ok: Tensor | None = None
        self.samples: tuple[int, ...] | None = None
        self.batch = 0
        self.left: Tensor | int = 0
        self.room: Room | None = None

    @classmethod
    def adopt(cls, layer: CacheLayerMixin | None) -> SkipCacheLayer:
        """Take over a stock dynamic layer, with whatever it holds."""
        new = cls(window=getattr(layer, "sliding_window", None))
        new.record_past = getattr(layer, "record_past", False)
        if layer is not None and layer.get_seq_length() > 0:
            new.lazy_initialization(layer.keys, layer.values)
            new.keys, new.values, new.seen = layer.keys, layer.values, int(layer.get_seq_length())
            slots = torch.arange(new.seen - layer.keys.shape[2], new.seen, device=layer.keys.device)
            new.pos = slots.expand(layer.keys.shape[0], -1)
        return new

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.pos = torch.empty(key_states.shape[0], 0, dtype=torch.long, device=key_states.device)
        self.room = None

    def __copy__(self) -> SkipCacheLayer:
        """Both share the tensors; neither may write into them any more."""
        self.room = None
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        return new

    def offload(self) -> None:
        super().offload()
        if self.room is not None and self.room.views[0] is not self.keys:
            self.room = None  # it would stay on the device

    @property
    def slots(self) -> int:
        return 0 if self.pos is None else self.pos.shape[1]

    def hold(self, samples: tuple[int, ...] | None, batch: int) -> bool:
        self.batch = batch
        if self.samples == samples:
            return True
        if not self.slots:
            self.samples, self.is_initialized = samples, False
            return True
        if self.samples is not None:
            assert self.pos is not None
            self.prefetch()
            place, real = self._places()
            ok = or_true(self.ok, self.pos)[place] & real[:, None]
            self.keys, self.values, self.pos, self.ok = self.keys[place], self.values[place], self.pos[place], ok
            self.room = None
            self.left = self.left[place] if isinstance(self.left, Tensor) else self.left
            self.samples = None
        return samples is None

    def _places(self) -> tuple[Tensor, Tensor]:
        """For every sample of the batch, where among those held it is (0 if it is not), and whether it is."""
        assert self.pos is not None
        samples = range(self.batch) if self.samples is None else self.samples
        real = torch.tensor([b in samples for b in range(self.batch)], device=self.pos.device)
        return (real.long().cumsum(0) - 1).clamp(min=0), real

    def run(self) -> Tensor | int:
        return self.left + (self.slots if self.ok is None else self.ok.sum(1))

    def visible(self, pos: Tensor, ok: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.pos is None or not self.slots:
            return pos, ok
        both = None
        if self.ok is not None or ok is not None:
            both = torch.cat([or_true(self.ok, self.pos), or_true(ok, pos)], 1)
        return torch.cat([self.pos, pos.expand(self.pos.shape[0], -1)], 1), both

    def append(
        self, keys: Tensor, values: Tensor, pos: Tensor, ok: Tensor | None, steps: int, stored: Stored | None = None
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        if stored is None:
            self._store(keys, values, pos, ok)
            all_keys, all_values = self.keys, self.values
            self.ragged |= ok is not None or pos.shape[1] != steps or self.samples is not None
        else:
            all_keys, all_values = torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)
            index, index_ok = stored
            heads = index[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[3])
            self._store(keys.gather(2, heads), values.gather(2, heads), pos.gather(1, index), index_ok)
            self.ragged |= index_ok is not None or index.shape[1] != steps or self.samples is not None
        self.seen += steps
        if not self.record_past:
            self._slide()
        return all_keys, all_values

    def _store(self, keys: Tensor, values: Tensor, pos: Tensor, ok: Tensor | None) -> None:
        """Add rows to those held: in place where they are ours to write to and there is room."""
        assert self.pos is not None
        alike = self.slots and keys.shape[:2] == self.keys.shape[:2] and keys.dtype == self.keys.dtype
        if not (alike and in_place()):
            self.pos, self.ok = self.visible(pos, ok)
            self.keys, self.values = torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)
            self.room = None
        elif pos.shape[1]:
            room, columns, real = self.room, pos.shape[1], self.ok is None and ok is None
            if room is None or not (room.holds(self.keys, self.values, self.pos) and room.writable(columns)):
                room = Room((self.keys, self.values, self.pos, or_true(self.ok, self.pos)), columns)
            elif self.ok is not None and self.ok is not room.views[3]:  # crop has made others invalid
                room.views[3].copy_(self.ok)
            self.keys, self.values, self.pos, held_ok = room.add((keys, values, pos, or_true(ok, pos)))
            self.room, self.ok = room, None if real else held_ok

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if "rows" in kwargs:
            return self.append(key_states, value_states, *kwargs["rows"])
        steps = key_states.shape[2]
        pos = torch.arange(self.seen, self.seen + steps, device=key_states.device).expand(key_states.shape[0], -1)
        return self.append(key_states, value_states, pos, None, steps)

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        offset = 0 if self.window is None else max(self.seen - self.window + 1, 0)
        return self.seen - offset + query_length, offset

    def activate_past_recording(self) -> None:
        self.record_past = True

    def _slide(self) -> None:
        """Forget the rows that no later row sees through the window."""
        if self.window is not None and self.pos is not None and self.seen >= self.window:
            before = self.run()
            if self.ragged:
                self._select((self.pos > self.seen - self.window).any(0))
            else:
                self._keep(max(self.slots - self.window + 1, 0), self.slots)
            self.left = self.left + before - self.run()

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` logical rows: slots are dropped by position, whatever their number.

        Raises:
            RuntimeError: rows that left the sliding window would come back, and past recording was not activated (the
                stock layer says the same).
        """
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes a negative number of rows to remove, got {tokens_to_remove}")
        if tokens_to_remove == 0 or self.pos is None:
            return self._slide()
        if self.window is not None and self.seen >= self.window and not self.record_past:
            raise RuntimeError(
                "call activate_past_recording before crop: rows that left the sliding window are needed again"
            )
        self.seen = max(self.seen + tokens_to_remove, 0)
        self.carry = self.carry if self.seen else None
        if self.ragged:
            self.ok = or_true(self.ok, self.pos) & (self.pos < self.seen)
            self._select(self.ok.any(0))
            if bool(self.ok.all()):
                self.ok = None
        else:
            self._keep(0, max(self.slots + tokens_to_remove, 0))
        self._slide()

    def reset(self) -> None:
        super().reset()
        self.seen, self.ragged, self.pos, self.ok, self.carry, self.samples = 0, False, None, None, None, None
        self.left, self.room = 0, None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._samples(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._samples(lambda t: t[indices, ...])

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._samples(lambda t: t.repeat_interleave(repeats, dim=0))

    def _samples(self, change: Callable[[Tensor], Tensor]) -> None:
        self.prefetch()
        held = change
        if self.pos is not None and self.samples is not None:
            place, real = map(change, self._places())
            index, self.batch, self.samples = place[real], len(real), tuple(real.nonzero().flatten().tolist())

            def held(t: Tensor) -> Tensor:
                return t[index]

        if self.pos is not None:
            self.keys, self.values, self.pos = held(self.keys), held(self.values), held(self.pos)
            self.ok = None if self.ok is None else held(self.ok)
            self.room = None
            self.left = held(self.left) if isinstance(self.left, Tensor) else self.left
            if self.samples == ():
                self._select(self.pos.new_zeros(self.slots, dtype=torch.bool))
        self.carry = None if self.carry is None else change(self.carry)

    def _select(self, columns: Tensor) -> None:
        """Only these columns stay. Waits for the device."""
        assert self.pos is not None
        together = range_of(columns.tolist())
        if together is not None:
            return self._keep(*together)
        self.prefetch()
        self.keys, self.values, self.pos = self.keys[:, :, columns], self.values[:, :, columns], self.pos[:, columns]
        self.ok = None if self.ok is None else self.ok[:, columns]
        self.room = None

    def _keep(self, first: int, last: int) -> None:
        """Only columns ``first`` to ``last`` stay: in place where there is room, else copied, to free the others."""
        assert self.pos is not None
        if (first, last) == (0, self.slots):
            return
        self.prefetch()
        room, ok = self.room, self.ok
        if room is not None and room.holds(self.keys, self.values, self.pos):
            ours = ok is room.views[3]
            if room.keep(first, last):
                self.keys, self.values, self.pos, held_ok = room.views
                self.ok = held_ok if ours else None if ok is None else ok[:, first:last]
                return
        self.room = None
        self.keys, self.values = _copied(self.keys[:, :, first:last]), _copied(self.values[:, :, first:last])
        self.pos, self.ok = _copied(self.pos[:, first:last]), None if ok is None else _copied(ok[:, first:last])


def _copied(part: Tensor) -> Tensor:
    return part.clone(memory_format=torch.contiguous_format)


def or_true(ok: Tensor | None, pos: Tensor) -> Tensor:
    return torch.ones_like(pos, dtype=torch.bool) if ok is None else ok
