"""A layer's own forward: as it is, and with a mask of our own where the cache's slots ask for one."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vtskip.models.layers import PRE_NORM, LayerParts
from vtskip.runtime import decode
from vtskip.runtime.cache import cache_layer
from vtskip.runtime.carried import whole
from vtskip.runtime.checkpoints import own_forward
from vtskip.runtime.frozen_tail import FrozenRun
from vtskip.runtime.masks import StepMask, backend, window_of
from vtskip.runtime.slots import RowSlots, SkipCacheLayer
from vtskip.runtime.static_slots import StaticSkipLayer
from vtskip.runtime.stats import StepState
from vtskip.runtime.unread import Unread


@dataclass
class LayerRuntime:
    """What a patched layer needs beside its planner. Lives on the planner, never in a closure: deepcopy and pickle work.

    Attributes:
        index: of the layer in the decoder. shared: the state of the current forward, one object for all layers.
        inner: an instance ``forward`` that was there before us (accelerate, Liger), or None for the class's own.
        arg_names: the class forward's parameters after ``hidden_states``, to call by keyword only.
        parts: names of the layer's norms. rotary: the decoder's rotary embedding.
        unread: what nothing reads of the layer's output, if only some logits are asked for.
        hands_on: in this forward a patched layer comes next that reads what this one returns itself.
        frozen: the run of layers that this one makes K and V of frozen rows with, if it does.
    """

    index: int
    shared: StepState
    inner: Any
    arg_names: tuple[str, ...] = field(default=())
    parts: LayerParts = PRE_NORM
    rotary: nn.Module | None = None
    frozen: FrozenRun | None = None
    unread: Unread = "none"
    hands_on: bool = False


def native(layer: nn.Module, hidden_states: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """The layer's own forward, looked up late: FSDP2 exchanges the class, and only the outermost class checkpoints."""
    forward = layer.vtskip.runtime.inner or functools.partial(type(layer).forward, layer)
    out = own_forward(layer, forward, hidden_states, kwargs)
    return out[0] if isinstance(out, tuple) else out


def text_step(layer: nn.Module, hidden_states: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """A step in which this layer runs every row: native, with a new mask only where the cache's slots need one."""
    hidden_states = whole(hidden_states)
    stored = cache_layer(kwargs.get("past_key_values"), layer.vtskip.runtime.index)
    if not isinstance(stored, RowSlots) or not stored.ragged:
        return native(layer, hidden_states, kwargs)
    received, (batch, length), attn = kwargs.get("attention_mask"), hidden_states.shape[:2], layer.self_attn
    kind, window = backend(attn), window_of(attn)
    static = isinstance(stored, StaticSkipLayer)
    past = 0 if static and window is None else stored.seen  # not read there, and asking would wait for the device
    step = StepMask(received, kind, window, past, length, None, hidden_states.dtype)
    if isinstance(stored, StaticSkipLayer):
        mask = step.without(stored.real_columns(length))
    else:
        assert isinstance(stored, SkipCacheLayer)
        stored.hold(None, batch)
        ordered = window is None if kind == "flash" else length == 1  # the slots' order says who sees whom
        if received is None and stored.ok is None and ordered:
            return native(layer, hidden_states, kwargs)
        index = torch.arange(length, device=hidden_states.device).expand(batch, -1)
        pos, ok = stored.visible(past + index, None)
        mask = step.subset(index, None, pos, ok, kind)
        if length == 1 and decode.by_kernel(layer, hidden_states, kind):
            return decode.step(layer, hidden_states, kwargs, mask)
    return native(layer, hidden_states, {**kwargs, "attention_mask": mask})
