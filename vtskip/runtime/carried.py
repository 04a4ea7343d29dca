"""Hidden states between two layers, with the rows that ran still packed: scattered back only where somebody reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules
from torch.utils._pytree import tree_map

from vtskip.errors import ModelError

if TYPE_CHECKING:
    from vtskip.runtime.layout import Layout

# What may be asked of a carried tensor without its values.
UNREAD = {getattr(Tensor, name).__get__ for name in ("shape", "device", "dtype", "ndim", "is_meta", "is_cuda")}
UNREAD |= {Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point}


class Carried(Tensor):
    """``[B, S, D]``, of which the rows of a layout lie apart.

    The next layer takes the packed rows if it runs the same ones, and nothing is moved. For everybody else this is the
    whole tensor: any operation on it scatters the rows first, once, with the gradient that scattering at once would have.

    Attributes:
        place: which rows, and how they lie. packed: their values, of its form. rest: ``[B, S, D]`` with those of all others.
        full: the scattered tensor, from the first reading on; it may have been written into, so it is what counts then.
        tracked: whether gradients were recorded where the rows were left here; who reads them may have that off.
    """

    place: Layout
    packed: Tensor
    rest: Tensor
    full: Tensor | None
    tracked: bool

    @staticmethod
    def __new__(cls, place: Layout, packed: Tensor, rest: Tensor) -> Carried:
        return Tensor._make_wrapper_subclass(cls, rest.shape, dtype=rest.dtype, device=rest.device)

    def __init__(self, place: Layout, packed: Tensor, rest: Tensor):
        self.place, self.packed, self.rest = place, packed, rest
        self.full, self.tracked = None, torch.is_grad_enabled()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in UNREAD:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs or {})
        args, kwargs = tree_map(whole, (args, kwargs or {}))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise ModelError(
            f"{func} reads hidden states between two layers past torch's Python interface; attach with lossless=False"
        )

    def lies_in(self, place: Layout) -> bool:
        """Whether the packed rows are those of ``place``, in its form, and nobody can have changed them since."""
        return self.full is None and self.place.rows is place.rows and self.place.packed == place.packed


def whole(x: Any) -> Any:
    """A carried tensor with all rows in their places; anything else as it is."""
    if not isinstance(x, Carried):
        return x
    if x.full is None:
        with torch.set_grad_enabled(x.tracked):
            x.full = x.place.put(x.rest, x.packed)
    return x.full


def rest_of(x: Tensor, place: Layout) -> Tensor:
    """``x`` where the rows of ``place`` need not be right: they are about to be written."""
    return x.rest if isinstance(x, Carried) and x.lies_in(place) else whole(x)


def hands_on(layers: Sequence[nn.Module], packs: bool) -> None:
    """Before every forward, note on each layer whether a patched one comes behind it before which nobody stands."""
    for layer, behind in zip(layers, [*layers[1:], None]):
        layer.vtskip.runtime.hands_on = packs and behind is not None and quiet(behind)


def quiet(layer: nn.Module) -> bool:
    """Whether nobody stands before or behind a layer's forward: a hook, or accelerate, which moves what layers hand on."""
    return not (hooks_of(layer) or hooks_everywhere() or "_hf_hook" in layer.__dict__)


def hooks_of(module: nn.Module) -> list[Any]:
    """What runs before and behind a module, forward and backward."""
    found = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return [hook for hooks in found for hook in hooks.values()]


def hooks_everywhere() -> bool:
    """Whether something runs before or behind every module there is."""
    forward = (modules._global_forward_hooks, modules._global_forward_pre_hooks)
    return any((*forward, modules._global_backward_hooks, modules._global_backward_pre_hooks))
