"""A subset of the rows of a batch, its places and counts, and how many rows a keep ratio leaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

Rounding = Literal["ceil", "trunc"]
T = TypeVar("T")


def rows_to_keep(keep: float, size: int, rounding: Rounding = "ceil") -> int:
    """How many of ``size`` rows are kept.

    ``ceil``: at least one row, guarded against ``ceil(0.14 * 50) == 8``. ``trunc``: the float32 product cut toward zero.
    """
    if rounding == "trunc":
        return int(np.float32(keep) * np.float32(size))
    return max(1, math.ceil(keep * size - 1e-9)) if size else 0


def rows_to_keep_of(size: Tensor, keep: float, rounding: Rounding) -> Tensor:
    """:func:`rows_to_keep` of every element, on the device."""
    if rounding == "trunc":
        return (size.float() * keep).long()
    return (keep * size.double() - 1e-9).ceil().long().clamp(min=1).masked_fill(size == 0, 0)


def round_up(n: int, bucket: int) -> int:
    return -(-n // bucket) * bucket


class lazy(Generic[T]):
    """``functools.cached_property`` without its lock, which ``torch.compile`` cannot trace."""

    def __init__(self, function: Callable[[Any], T]):
        self.function, self.__doc__ = function, function.__doc__

    def __get__(self, owner: Any, cls: type) -> T:
        value = self.function(owner)
        setattr(owner, self.function.__name__, value)
        return value


class RowSet:
    """A subset of the rows of every sample: ``mask`` ``[B, S]`` bool, and how many rows each sample has in it.

    The counts are known on the host, so that gathering them needs no device synchronisation. ``samples``: the places in the
    batch that ``mask`` and ``counts`` are about, None for all of it.
    """

    least = 0  # rows that run in any case, see `run_at_least_one`
    bounds = False  # the counts are upper bounds, see `RowMap.bucketed`
    sizes: tuple[tuple[int, ...], ...] | None = None  # vision rows by group, where a method chose them group by group

    def __init__(self, mask: Tensor, counts: Sequence[int], samples: tuple[int, ...] | None = None):
        self.mask = mask
        self.counts = tuple(int(c) for c in counts)
        self.samples = samples

    def to(self, device: torch.device) -> RowSet:
        """The same rows on another device."""
        moved = RowSet(self.mask.to(device), self.counts, self.samples)
        moved.least, moved.bounds, moved.sizes = self.least, self.bounds, self.sizes
        return moved

    def both(self, other: RowSet) -> RowSet:
        """Rows that are in this set and in the other, where neither is known to hold the other: the counts are bounds."""
        found = RowSet(self.mask & other.mask, [min(n, m) for n, m in zip(self.counts, other.counts)])
        found.bounds = True
        return found

    @property
    def width(self) -> int:
        """Rows of the longest sample: the second dimension of a gathered batch."""
        return min(max([self.least, *self.counts]), self.mask.shape[1])

    @lazy
    def index(self) -> Tensor:
        """``[B, width]``: kept positions in sequence order, right-aligned.

        Shorter samples are filled on the left with rows outside the set, all distinct, so that scattering back never
        writes one row twice.
        """
        return self.mask.to(torch.uint8).argsort(dim=1, stable=True)[:, self.mask.shape[1] - self.width :]

    @lazy
    def ok(self) -> Tensor | None:
        """``[B, width]`` False where ``index`` holds a filler; None when there is none."""
        if self.bounds:
            return self.mask.gather(1, self.index)
        if min(self.counts, default=0) == self.width:
            return None
        start = on_device([self.width - c for c in self.counts], self.mask.device)
        return torch.arange(self.width, device=self.mask.device) >= start[:, None]

    @lazy
    def flat_index(self) -> Tensor:
        """``index`` over the flattened batch, ``[B * width]``."""
        batch, length = self.mask.shape
        return (self.index + self._first(batch, length)[:, None]).reshape(-1)

    def _first(self, batch: int, length: int) -> Tensor:
        """Where each sample begins in the flattened batch."""
        if self.samples is None:
            return torch.arange(0, batch * length, max(length, 1), device=self.mask.device)
        return on_device([b * length for b in self.samples], self.mask.device)

    @lazy
    def flat(self) -> Tensor:
        """``[len(self)]``: the rows' places in the flattened batch, sample by sample in sequence order, without fillers.

        Not where the counts are bounds. Nothing is read on the host.
        """
        (batch, length), mask, n = self.mask.shape, self.mask.reshape(-1), len(self)
        place = torch.arange(mask.numel(), device=mask.device)
        rank = torch.where(mask, mask.cumsum(0) - 1, n)  # rows outside the set are all written behind its end
        flat = place.new_zeros(n + 1).scatter_(0, rank, place)[:n]
        if self.samples is None:
            return flat
        return flat % length + self._first(batch, length)[flat // length]

    @lazy
    def slots(self) -> Tensor:
        """``[len(self)]``: where the rows of ``flat`` lie among those of ``index``, flattened."""
        width = self.width
        return on_device(
            [b * width + i for b, n in enumerate(self.counts) for i in range(width - n, width)], self.mask.device
        )

    @property
    def even(self) -> bool:
        """Whether a gathered batch of these rows has no filler, as far as the host knows."""
        return self.bounds or min(self.counts, default=0) == self.width

    @lazy
    def packed(self) -> RowSet:
        """The same rows without the samples that have none; itself where every sample has some, or no sample has."""
        some = [b for b, count in enumerate(self.counts) if count]
        if self.samples is not None or len(some) in (0, len(self.counts)):
            return self
        packed = RowSet(
            self.mask.index_select(0, on_device(some, self.mask.device)), [self.counts[b] for b in some], tuple(some)
        )
        packed.bounds = self.bounds
        return packed

    def run_at_least_one(self) -> None:
        """Make an empty set one filler row wide (what is computed on fillers is thrown away)."""
        if self.width == 0 and self.mask.shape[1]:
            self.least = 1
            for name in ("index", "ok", "flat_index", "flat", "slots"):
                self.__dict__.pop(name, None)

    def __len__(self) -> int:
        return sum(self.counts)


def on_device(values: Sequence[int], device: torch.device) -> Tensor:
    """Host numbers as a long tensor; to a GPU from pinned memory, so that the host does not wait for what runs there."""
    if device.type != "cuda" or torch.compiler.is_compiling():
        return torch.tensor(values, dtype=torch.long, device=device)
    return torch.tensor(values, dtype=torch.long).pin_memory().to(device, non_blocking=True)
