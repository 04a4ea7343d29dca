"""Rows in the middle of a KV cache leave and those behind move up, so that a stream of any length fits.

Positions stay 0 to n - 1 over what is held, the "contiguous" form of StreamingVLM (arXiv 2510.09608): no position ever leaves
the range that a model was trained on. There keys are kept unrotated and turned anew in every step; here they are turned
back once, when rows before them leave.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from vtskip.errors import ModelError
from vtskip.models.families import decoder_of, unwrap
from vtskip.runtime.attention import rotate
from vtskip.runtime.cache import skip_layer
from vtskip.runtime.slots import SkipCacheLayer, or_true

FIXED_TABLES = ("default", "linear", "llama3", "yarn")  # whose angles do not depend on the length


@torch.no_grad()
def forget(model: nn.Module, cache: Cache, first: int, last: int) -> None:
    """Take the rows of positions ``first`` to ``last`` (without it) out of every layer; later ones move up by as many.

    What is computed afterwards is what attention over the remaining rows at their new positions gives. Those keep what they
    have read from the rows that left.

    Args:
        model: the model that filled the cache, attached or not, with one table of rotary positions for all layers.
        cache: a DynamicCache or SkipCache; its layers are exchanged for ones that rows can leave.
        first, last: logical positions, ``0 <= first < last <= cache.get_seq_length()``.

    Raises:
        ModelError: another kind of position or cache, a sliding window, a method that counts positions for itself, or
            positions the cache does not hold.
    """
    if not 0 <= first < last <= cache.get_seq_length():
        raise ModelError(
            f"cannot forget positions {first} to {last} of {cache.get_seq_length()}; accepted: 0 <= first < last <= length"
        )
    decoder, _ = decoder_of(unwrap(model))
    turn = turner(decoder, last - first)
    for index, layer in enumerate(decoder.layers):
        if getattr(getattr(layer, "vtskip", None), "compact", False):
            raise ModelError(
                "a method with compact positions cannot forget: its keys are not turned by their positions"
            )
        held = skip_layer(cache, index)
        if not isinstance(held, SkipCacheLayer) or held.window is not None:
            raise ModelError(
                f"layer {index} of the cache ({type(held).__name__}, sliding window {getattr(held, 'window', None)}) "
                "cannot forget; accepted: a DynamicCache or SkipCache without sliding windows"
            )
        take_out(held, first, last, partial(turn, layer.self_attn))


def turner(decoder: nn.Module, by: int) -> Callable[[nn.Module, Tensor], Tensor]:
    """``(attention, keys) -> keys`` turned back by ``by`` positions. Raises ModelError where that is no single rotation."""
    rotary: Any = getattr(decoder, "rotary_emb", None)
    kind = getattr(rotary, "rope_type", None)
    mixed = "mrope_section" in (getattr(getattr(rotary, "config", None), "rope_parameters", None) or {})
    if kind not in FIXED_TABLES or mixed:
        raise ModelError(
            f"{type(decoder).__name__} with rotary positions {'of several axes' if mixed else repr(kind)} cannot forget; "
            f"accepted: one axis, {', '.join(FIXED_TABLES)}"
        )
    at = torch.tensor([[by]], device=rotary.inv_freq.device)
    wide = torch.promote_types(rotary.inv_freq.dtype, torch.float32)
    # The scaling is in the keys already.
    cos, sin = (t / rotary.attention_scaling for t in rotary(torch.empty(0, dtype=wide, device=at.device), at))

    def turn(attn: nn.Module, keys: Tensor) -> Tensor:
        back = (cos.to(keys.device), -sin.to(keys.device))
        return rotate(attn, keys.to(torch.promote_types(keys.dtype, wide)), back).to(keys.dtype)

    return turn


def take_out(layer: SkipCacheLayer, first: int, last: int, turn: Callable[[Tensor], Tensor]) -> None:
    """``forget`` on one layer. Waits for the device where rows are missing, to learn which columns leave."""
    layer.seen -= last - first
    if layer.pos is None or not layer.slots:
        return
    layer.prefetch()
    room, keys, values, pos = layer.room, layer.keys, layer.values, layer.pos
    if room is not None and not (room.holds(keys, values, pos) and room.writable(0)):
        room = None
    ok = or_true(layer.ok, pos)
    later, ok = pos >= last, ok & ~((pos >= first) & (pos < last))
    stay = ok.any(0).tolist() if layer.ragged else [not first <= place < last for place in range(layer.slots)]
    columns = torch.tensor(stay, device=pos.device)
    keys = torch.where(later[:, None, :, None], turn(keys), keys)[:, :, columns]
    pos, ok = torch.where(later, pos - (last - first), pos)[:, columns], ok[:, columns]
    held = (keys, values[:, :, columns], pos, ok)
    layer.keys, layer.values, layer.pos, ok = held if room is None else room.refill(held)
    layer.ok = None if layer.ok is None and (not layer.ragged or len(pos) == 1) else ok
    layer.room = room
