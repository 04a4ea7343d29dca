"""Gradient checkpointing of a patched layer, wherever the installed transformers does it.

Newer releases checkpoint inside a layer class's ``forward``: a patched layer plans outside of it, once. Older ones (5.17 is
one) do it in ``__call__``, around everything: planning would be replayed in the backward pass, when the rows of its forward
are gone. There the layer's checkpoint function is exchanged for one that only calls, and the executor checkpoints itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from vtskip.runtime.carried import whole

IN_CALL = "__call__" in vars(GradientCheckpointingLayer)
FUNCTION = "_gradient_checkpointing_func"


def only_call(checkpoint: Callable[..., Tensor], body: Callable[..., Tensor], *args: Any) -> Tensor:
    """What a layer's ``__call__`` uses instead of ``checkpoint``."""
    return body(*args)


def checkpoint_of(layer: nn.Module) -> Any:
    """transformers' own checkpoint function of a layer, None if there is none."""
    function = layer.__dict__.get(FUNCTION)
    ours = isinstance(function, functools.partial) and function.func is only_call
    return function.args[0] if ours else function


def take_over(layer: nn.Module) -> None:
    """Before every forward, for checkpointing may be switched on after a method was attached."""
    function = checkpoint_of(layer)
    if IN_CALL and function is not None:
        layer.__dict__[FUNCTION] = functools.partial(only_call, function)


def hand_back(layer: nn.Module) -> None:
    """Undo :func:`take_over`."""
    if FUNCTION in layer.__dict__:
        layer.__dict__[FUNCTION] = checkpoint_of(layer)


def checkpointing(layer: nn.Module) -> bool:
    return bool(getattr(layer, "gradient_checkpointing", False)) and layer.training


def checkpointed(layer: nn.Module, body: Callable[..., Tensor], *tensors: Tensor | None) -> Tensor:
    """Run ``body`` under the layer's gradient checkpointing, as its class forward would."""
    return checkpoint_of(layer)(body, *map(whole, tensors)) if checkpointing(layer) else body(*tensors)


def own_forward(layer: nn.Module, forward: Callable[..., Tensor], hidden_states: Tensor, kwargs: dict[str, Any]) -> Any:
    """``forward`` of the layer's class or of an earlier patch, checkpointed once."""
    if IN_CALL:
        return checkpointed(layer, functools.partial(forward, **kwargs), hidden_states)
    return forward(hidden_states, **kwargs)
