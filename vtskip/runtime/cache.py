"""A KV cache whose layers may hold different rows, while every length it reports stays logical."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from vtskip.errors import ModelError


class SkipCacheLayer(DynamicLayer):
    """K/V of some of the rows seen so far.

    Attributes:
        keys, values: ``[B, heads, slots, head_dim]``.
        pos: ``[B, slots]`` logical position of each slot; None before the first row.
        ok: ``[B, slots]`` False on fillers (samples of a batch keep different numbers of rows); None when all are real.
        seen: logical length, the number of rows that passed by, kept or not.
        ragged: True once the slots are not simply the positions 0 to seen - 1.
        window: sliding window of the layer, in logical positions, or None.
        carry: ``[B, ...]``, a method's per-sample decision for later steps, or None.
        samples: the places in a batch of ``batch`` samples that hold any rows, where not all do: ``B`` above is then their
            number. None: all.
        left: how many rows of each sample have left the window, ``[B]`` or one number for all.
    """

    def __init__(self, window: int | None = None):
        super().__init__()
        self.window, self.is_sliding = window, window is not None
        self.seen, self.ragged = 0, False
        self.keys: Any
        self.values: Any
        self.pos: Tensor | None = None
        self.ok: Tensor | None = None
        self.carry: Tensor | None = None
        self.samples: tuple[int, ...] | None = None
        self.batch = 0
        self.left: Tensor | int = 0

    @classmethod
    def adopt(cls, layer: CacheLayerMixin | None) -> SkipCacheLayer:
        """Take over a stock dynamic layer, with whatever it holds. Raises ModelError for any other kind of cache."""
        if layer is None or type(layer) is DynamicLayer:
            new = cls()
        elif type(layer) is DynamicSlidingWindowLayer:
            new = cls(window=layer.sliding_window)
        else:
            raise ModelError(
                f"this method drops rows from the KV cache, which {type(layer).__name__} cannot hold; "
                "use a DynamicCache (the default of generate) or vtskip.SkipCache"
            )
        if layer is not None and layer.get_seq_length() > 0:
            new.lazy_initialization(layer.keys, layer.values)
            new.keys, new.values, new.seen = layer.keys, layer.values, int(layer.get_seq_length())
            slots = torch.arange(new.seen - layer.keys.shape[2], new.seen, device=layer.keys.device)
            new.pos = slots.expand(layer.keys.shape[0], -1)
        return new

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.pos = torch.empty(key_states.shape[0], 0, dtype=torch.long, device=key_states.device)

    @property
    def slots(self) -> int:
        return 0 if self.pos is None else self.pos.shape[1]

    def hold(self, samples: tuple[int, ...] | None, batch: int) -> bool:
        """Get ready for rows of these samples alone (None: of all); False if others hold rows already, which then stay."""
        self.batch = batch
        if self.samples == samples:
            return True
        if not self.slots:
            self.samples, self.is_initialized = samples, False
            return True
        if self.samples is not None:
            place, real = self._places()
            ok = _or_true(self.ok, self.pos)[place] & real[:, None]
            self.keys, self.values, self.pos, self.ok = self.keys[place], self.values[place], self.pos[place], ok
            self.left = self.left[place] if torch.is_tensor(self.left) else self.left
            self.samples = None
        return samples is None

    def _places(self) -> tuple[Tensor, Tensor]:
        """For every sample of the batch, where among those held it is (0 if it is not), and whether it is."""
        samples = range(self.batch) if self.samples is None else self.samples
        real = torch.tensor([b in samples for b in range(self.batch)], device=self.pos.device)
        return (real.long().cumsum(0) - 1).clamp(min=0), real

    def run(self) -> Tensor | int:
        """Rows of each sample that ran in this layer so far, ``[B]``, or one number for all."""
        return self.left + (self.slots if self.ok is None else self.ok.sum(1))

    def visible(self, pos: Tensor, ok: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Positions and validity of all keys that the next ``append`` of rows ``pos``, ``ok`` will return."""
        if self.pos is None or not self.slots:
            return pos, ok
        both = None
        if self.ok is not None or ok is not None:
            both = torch.cat([_or_true(self.ok, self.pos), _or_true(ok, pos)], 1)
        return torch.cat([self.pos, pos.expand(self.pos.shape[0], -1)], 1), both

    def append(
        self,
        keys: Tensor,
        values: Tensor,
        pos: Tensor,
        ok: Tensor | None,
        steps: int,
        stored: tuple[Tensor, Tensor | None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Add rows and return all K/V they may attend to.

        Args:
            keys, values: ``[B, heads, m, head_dim]`` of the new rows; ``pos``, ``ok`` ``[B, m]``.
            steps: by how much the logical length grows (rows of the forward, kept or not).
            stored: index into the m rows and validity, ``[B, c]`` each, if only some of them stay for later forwards.
        """
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        all_pos, all_ok = self.visible(pos, ok)
        all_keys, all_values = torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)
        if stored is None:
            self.keys, self.values, self.pos, self.ok = all_keys, all_values, all_pos, all_ok
            self.ragged |= ok is not None or pos.shape[1] != steps or self.samples is not None
        else:
            index, index_ok = stored
            heads = index[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[3])
            self.pos, self.ok = self.visible(pos.gather(1, index), index_ok)
            self.keys = torch.cat([self.keys, keys.gather(2, heads)], 2)
            self.values = torch.cat([self.values, values.gather(2, heads)], 2)
            self.ragged |= index_ok is not None or index.shape[1] != steps or self.samples is not None
        self.seen += steps
        if self.window is not None and self.seen >= self.window:
            before = self.run()
            self._select((self.pos > self.seen - self.window).any(0))
            self.left = self.left + before - self.run()
        return all_keys, all_values

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        steps = key_states.shape[2]
        pos = torch.arange(self.seen, self.seen + steps, device=key_states.device).expand(key_states.shape[0], -1)
        return self.append(key_states, value_states, pos, None, steps)

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        offset = 0 if self.window is None else max(self.seen - self.window + 1, 0)
        return self.seen - offset + query_length, offset

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` logical rows: slots are dropped by position, whatever their number."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes a negative number of rows to remove, got {tokens_to_remove}")
        if tokens_to_remove == 0 or self.pos is None:
            return
        self.seen = max(self.seen + tokens_to_remove, 0)
        self.carry = self.carry if self.seen else None
        self.ok = _or_true(self.ok, self.pos) & (self.pos < self.seen)
        self._select(self.ok.any(0))
        if bool(self.ok.all()):
            self.ok = None

    def reset(self) -> None:
        super().reset()
        self.seen, self.ragged, self.pos, self.ok, self.carry, self.samples = 0, False, None, None, None, None
        self.left = 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._samples(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._samples(lambda t: t[indices, ...])

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._samples(lambda t: t.repeat_interleave(repeats, dim=0))

    def _samples(self, change: Callable[[Tensor], Tensor]) -> None:
        held = change
        if self.pos is not None and self.samples is not None:
            place, real = map(change, self._places())
            index, self.batch, self.samples = place[real], len(real), tuple(real.nonzero().flatten().tolist())

            def held(t: Tensor) -> Tensor:
                return t[index]

        if self.pos is not None:
            self.keys, self.values, self.pos = held(self.keys), held(self.values), held(self.pos)
            self.ok = None if self.ok is None else held(self.ok)
            self.left = held(self.left) if torch.is_tensor(self.left) else self.left
            if self.samples == ():
                self._select(self.pos.new_zeros(self.slots, dtype=torch.bool))
        self.carry = None if self.carry is None else change(self.carry)

    def _select(self, columns: Tensor) -> None:
        assert self.pos is not None
        self.keys, self.values, self.pos = self.keys[:, :, columns], self.values[:, :, columns], self.pos[:, columns]
        self.ok = None if self.ok is None else self.ok[:, columns]


def _or_true(ok: Tensor | None, pos: Tensor) -> Tensor:
    return torch.ones_like(pos, dtype=torch.bool) if ok is None else ok


class SkipCache(DynamicCache):
    """A DynamicCache that counts what it holds. Any DynamicCache given to an attached model works the same way:
    its layers are exchanged for :class:`SkipCacheLayer` when a method first drops rows from them."""

    def kv_bytes(self) -> int:
        return kv_bytes(self)


class Sink:
    """What an attention sees as ``past_key_values`` while one layer runs; attentions only call ``update``."""

    def __init__(self, update: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]):
        self._update = update

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        return self._update(key_states, value_states)


def cache_layer(cache: Cache | None, index: int) -> CacheLayerMixin | None:
    """The layer ``index`` of a cache, or None where there is none yet."""
    return None if cache is None or len(cache.layers) <= index else cache.layers[index]


def skip_layer(cache: Cache, index: int) -> SkipCacheLayer:
    """Layer ``index`` as a SkipCacheLayer, exchanging the stock one in place. Raises ModelError for other caches."""
    layer = cache_layer(cache, index)
    if isinstance(layer, SkipCacheLayer):
        return layer
    new = SkipCacheLayer.adopt(layer)
    while len(cache.layers) <= index:
        cache.layers.append(DynamicLayer())
    cache.layers[index] = new
    return new


def stored_slots(layer: CacheLayerMixin | None) -> int:
    """Rows a layer holds per sample, fillers included."""
    keys = getattr(layer, "keys", None)
    return keys.shape[2] if isinstance(keys, Tensor) and keys.dim() == 4 else 0


def kv_bytes(cache: Cache) -> int:
    """Bytes of all keys and values held."""
    return sum(
        t.numel() * t.element_size()
        for layer in cache.layers
        for t in (getattr(layer, "keys", None), getattr(layer, "values", None))
        if isinstance(t, Tensor)
    )
