"""Norms that a kernel may take the place of: which modules are RMS norms, and with what numbers."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vtskip.models.sharding import elsewhere


class Rms(NamedTuple):
    """``x / sqrt(mean(x^2) + eps) * (offset + weight)``; the offset is 1 in Gemma's."""

    weight: Tensor
    eps: float
    offset: float


def rms_of(norm: nn.Module, dtype: torch.dtype) -> Rms | None:
    """A norm's numbers, if it is an RMS norm that takes and gives ``dtype`` and that nobody has hooked or patched."""
    weight, eps = getattr(norm, "weight", None), getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if not isinstance(weight, Tensor) or not isinstance(eps, float) or weight.dim() != 1 or elsewhere(weight):
        return None
    hooked = norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks or norm._backward_pre_hooks
    if weight.dtype != dtype or hooked or "forward" in norm.__dict__:
        return None
    kind: Any = type(norm)
    offset = _offset(kind)
    return None if offset is None else Rms(weight, eps, offset)


@functools.cache
def _offset(cls: Any) -> float | None:
    """0 or 1, or None for a class that computes something else: tried on a small one."""
    generator, eps = torch.Generator().manual_seed(0), 0.5
    x = torch.randn(3, 8, generator=generator, dtype=torch.float32) * 3
    try:
        with torch.no_grad(), torch.device("cpu"):
            probe = cls(8, eps=eps).float()
            probe.weight.copy_(torch.randn(8, generator=generator))
            found = probe(x)
    except Exception:  # classes of other libraries may ask for anything; such a norm is called as it is
        return None
    unit = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    for offset in (0.0, 1.0):
        expected = unit * (offset + probe.weight.detach())
        if found.shape == x.shape and torch.allclose(found, expected, rtol=1e-5, atol=1e-6):
            return offset
    return None
