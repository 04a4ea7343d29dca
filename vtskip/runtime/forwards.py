"""Putting a forward of ours into a layer and taking it out again, inside whatever another library has put around it.

accelerate's hooks (``device_map``, offloading) replace ``layer.forward`` by one that moves the inputs, loads offloaded weights,
calls ``layer._old_forward`` and puts the weights away. Ours has to run in there, whichever came first: a hooked layer is
patched at ``_old_forward``, where accelerate itself keeps a patch that it found, and from where it brings it back.
"""

from __future__ import annotations

import functools
from types import MethodType
from typing import Any

import torch
from torch import nn

from vtskip.errors import ModelError
from vtskip.runtime.layer import layer_forward


def hooked(layer: nn.Module) -> bool:
    return "_hf_hook" in layer.__dict__ and "_old_forward" in layer.__dict__


def put_in(layer: nn.Module) -> None:
    setattr(layer, "_old_forward" if hooked(layer) else "forward", functools.partial(layer_forward, layer))


def found(layer: nn.Module) -> Any:
    """The instance's forward that is there before ours (Liger's, say), or None for the class's own."""
    forward = layer.__dict__.get("_old_forward" if hooked(layer) else "forward")
    return None if getattr(forward, "__func__", None) is type(layer).forward else forward


def take_out(layer: nn.Module, inner: Any) -> None:
    """Bring back what was :func:`found`."""
    if hooked(layer):
        layer._old_forward = MethodType(type(layer).forward, layer) if inner is None else inner
        return
    layer.__dict__.pop("forward", None)
    if inner is not None:
        layer.forward = inner


def is_in(layer: nn.Module) -> bool:
    """False if something has replaced our forward, or accelerate's around it."""
    forward = layer.__dict__.get("forward")
    if hooked(layer):
        if getattr(getattr(forward, "func", None), "__module__", None) != "accelerate.hooks":
            return False
        forward = layer.__dict__["_old_forward"]
    return isinstance(forward, functools.partial) and forward.func is layer_forward and forward.args[0] is layer


def router_device(layer: nn.Module) -> torch.device:
    """Where the parameters of a layer's planner belong: with the weights, or where offloaded ones are brought to.

    Raises ModelError where parameters that come late would be left out of what another library does with the layer's.
    """
    weight: Any = layer.input_layernorm.weight
    hooks = [h for m in (layer, layer.input_layernorm) for h in all_hooks(m)]
    if hasattr(layer, "ds_id") or hasattr(weight, "full_tensor"):
        raise ModelError(
            "the layers' weights are sharded already (FSDP2, or a DeepSpeed engine): the method's own parameters would "
            "be neither sharded nor trained with them; attach the method first, then shard"
        )
    if any(getattr(hook, "offload", False) and hook.place_submodules for hook in hooks):
        raise ModelError(
            "accelerate loads the weights of a whole layer at once (preload_module_classes) and would look for the "
            "method's parameters among those that it has put away; attach the method first, then dispatch the model"
        )
    devices = [d for hook in hooks if (d := getattr(hook, "execution_device", None)) is not None]
    return torch.device(devices[0]) if weight.is_meta and devices else weight.device


def all_hooks(module: nn.Module) -> list[Any]:
    """accelerate's hooks of a module, those in a chain one by one."""
    hook = module.__dict__.get("_hf_hook")
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))
