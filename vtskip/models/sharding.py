"""Weights that another library has cut up, and what a model spread over processes asks of a forward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def partitioned(tensor: Tensor) -> bool:
    """True for a parameter under ZeRO-3: between the calls of its module it holds nothing."""
    return hasattr(tensor, "ds_id")


def elsewhere(weight: Tensor) -> bool:
    """True where the values of a weight are not at hand: on the meta device, or cut up by ZeRO-3 or FSDP2."""
    return weight.is_meta or weight.numel() == 0 or hasattr(weight, "full_tensor")


def same_modules(module: nn.Module) -> bool:
    """Whether every process has to call the same modules in the same order, whatever its rows.

    In training, because gradients are summed over processes in the order in which they arrive, and a module that is not
    called has none. Under ZeRO-3 in every forward, because each call gathers the module's weights from all processes.
    """
    return (module.training and torch.is_grad_enabled()) or partitioned(next(module.parameters()))


def gathered(parameter: Tensor) -> Tensor:
    """A parameter with the parts that ZeRO-3 has spread. Every process has to ask for it, and in the same order."""
    with whole([parameter]):
        return parameter.detach().clone() if partitioned(parameter) else parameter.detach()


def full_shape(tensor: Tensor) -> torch.Size:
    """Of a tensor, and of a parameter of which ZeRO-3 has left nothing here."""
    return torch.Size(getattr(tensor, "ds_shape", tensor.shape))


@contextmanager
def whole(tensors: Iterable[Tensor], write: bool = False) -> Iterator[None]:
    """Inside, what ZeRO-3 has spread of ``tensors`` is here; with ``write`` all processes go on with what the first wrote.

    Every process has to come here, and in the same order.
    """
    spread = [tensor for tensor in tensors if partitioned(tensor)]
    if not spread:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(spread, modifier_rank=0 if write else None):
        yield
