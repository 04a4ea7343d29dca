"""A KV cache whose layers may hold different rows, while every length it reports stays logical."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from vtskip.errors import ModelError
from vtskip.runtime.slots import Rows, RowSlots, SkipCacheLayer
from vtskip.runtime.static_slots import StaticSkipLayer, StaticSlidingSkipLayer

__all__ = [
    "Sink",
    "SkipCache",
    "SkipCacheLayer",
    "append",
    "cache_layer",
    "dense_length",
    "is_static",
    "kv_bytes",
    "skip_layer",
    "stored_slots",
]


class SkipCache(DynamicCache):
    """A DynamicCache that counts what it holds, and whose rows lie in memory that grows by blocks.

    Any DynamicCache given to an attached model works the same way: its layers are exchanged for :class:`SkipCacheLayer`
    when a method first drops rows from them. Here all of them are that from the start, so that no step copies the rows of
    earlier ones, of layers that drop none either.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not self.layers:
            self.layer_class_to_replicate = SkipCacheLayer

    def kv_bytes(self) -> int:
        return kv_bytes(self)


class Sink:
    """What an attention sees as ``past_key_values`` while one layer runs; attentions only call ``update``."""

    def __init__(self, update: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]):
        self._update = update

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        return self._update(key_states, value_states)


def cache_layer(cache: Cache | None, index: int) -> CacheLayerMixin | None:
    """The layer ``index`` of a cache, or None where there is none yet. Raises ModelError for what is no Cache of layers."""
    if cache is None:
        return None
    layers = getattr(cache, "layers", None)
    if layers is None:
        raise ModelError(
            f"{type(cache).__name__} is not a cache of layers; use a DynamicCache (the default of generate)"
        )
    return None if len(layers) <= index else layers[index]


def adopt(layer: CacheLayerMixin | None) -> RowSlots:
    """A stock cache layer as one that rows can be left out of, with whatever it holds.

    Raises:
        ModelError: any other kind of layer.
    """
    kind = type(layer)
    if layer is None or kind in (DynamicLayer, DynamicSlidingWindowLayer):
        return SkipCacheLayer.adopt(layer)
    if kind is StaticLayer:
        return StaticSkipLayer.adopt(layer)
    if kind is StaticSlidingWindowLayer:
        return StaticSlidingSkipLayer.adopt(layer)
    reason = (
        "its stored blocks hold the same rows for all samples"
        if "Quantized" in kind.__name__
        else "vtskip does not know it"
    )
    raise ModelError(
        f"this method leaves rows out of the KV cache, which {kind.__name__} cannot do ({reason}); use a DynamicCache (the "
        "default of generate), a StaticCache or vtskip.SkipCache"
    )


def skip_layer(cache: Cache, index: int) -> RowSlots:
    """Layer ``index`` as one that rows can be left out of, exchanging the stock one in place.

    Raises:
        ModelError: a layer or cache that cannot leave rows out.
    """
    layer = cache_layer(cache, index)
    if isinstance(layer, RowSlots):
        return layer
    new = adopt(layer)
    while len(cache.layers) <= index:
        cache.layers.append(DynamicLayer())
    cache.layers[index] = new
    return new


def append(cache: Cache, index: int, keys: Tensor, values: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """``RowSlots.append`` on one layer; a cache that offloads layers fetches it before and sends it away after."""
    layer = skip_layer(cache, index)
    if getattr(cache, "offloading", False):
        return cache.update(keys, values, index, rows=rows)
    return layer.append(keys, values, *rows)


def stored_slots(layer: CacheLayerMixin | None) -> int:
    """Rows a layer holds per sample, fillers and unused slots included."""
    keys = getattr(layer, "keys", None)
    return keys.shape[2] if isinstance(keys, Tensor) and keys.dim() == 4 else 0


def is_static(layer: CacheLayerMixin | None) -> bool:
    """Whether a layer's slots are allocated beforehand."""
    return isinstance(layer, StaticLayer)


def dense_length(cache: Cache) -> int:
    """Rows that passed by; of a static cache the slots it has, which every query reads (and no step waits for the device)."""
    first = cache_layer(cache, 0)
    return stored_slots(first) if is_static(first) else cache.get_seq_length()


def kv_bytes(cache: Cache) -> int:
    """Bytes of all keys and values held, without the room that :class:`SkipCacheLayer` keeps free for more."""
    return sum(
        t.numel() * t.element_size()
        for layer in cache.layers
        for t in (getattr(layer, "keys", None), getattr(layer, "values", None))
        if isinstance(t, Tensor)
    )
