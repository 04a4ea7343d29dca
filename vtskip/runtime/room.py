"""Room for a cache layer's rows to grow in, so that a decode step writes its own rows and copies no others."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64  # columns
COLUMN_DIM = (2, 2, 1, 1)

Parts = tuple[Tensor, Tensor, Tensor, Tensor]  # keys, values [B, heads, n, head_dim]; pos, ok [B, n]


def growth(rows: int) -> int:
    """Free columns that room for ``rows`` rows has: copying all of them then costs each row a constant."""
    return max(BLOCK, rows // 4)


def in_place() -> bool:
    """Whether rows may be written behind those of earlier steps: not while a graph may hold those, traced or to come."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling())


class Room:
    """Four tensors with free columns. The rows held are columns ``start`` to ``end``, and ``views`` of them.

    Rows leave at either end by moving it; what left in front is free again once the rest is copied to new room. Views given
    out earlier stay as they were until rows are taken from the end (``crop``) and others are written there, or ``refill``.
    """

    def __init__(self, held: Parts, more: int):
        rows = held[2].shape[1]
        self.size = rows + more + growth(rows + more)
        self.buffers = [t.new_empty(*t.shape[:d], self.size, *t.shape[d + 1 :]) for t, d in zip(held, COLUMN_DIM)]
        self.views = self.refill(held)

    def refill(self, held: Parts) -> list[Tensor]:
        """Hold these rows, no more than fit, in place of all others."""
        rows = held[2].shape[1]
        for buffer, t, d in zip(self.buffers, held, COLUMN_DIM):
            buffer.narrow(d, 0, rows).copy_(t)
        self.start, self.end = 0, rows
        self.views = self._views()
        return self.views

    def _views(self) -> list[Tensor]:
        return [b.narrow(d, self.start, self.end - self.start) for b, d in zip(self.buffers, COLUMN_DIM)]

    def holds(self, keys: Tensor, values: Tensor, pos: Tensor) -> bool:
        """Whether these are the views given out last: other code may have put its own tensors in their place."""
        return self.views[0] is keys and self.views[1] is values and self.views[2] is pos

    def writable(self, columns: int) -> bool:
        inference = self.buffers[0].is_inference() and not torch.is_inference_mode_enabled()
        return not inference and self.end + columns <= self.size

    def add(self, new: Parts) -> list[Tensor]:
        columns = new[2].shape[1]
        for buffer, t, d in zip(self.buffers, new, COLUMN_DIM):
            buffer.narrow(d, self.end, columns).copy_(t)
        self.end += columns
        self.views = self._views()
        return self.views

    def keep(self, first: int, last: int) -> bool:
        """Only columns ``first`` to ``last`` of the views stay. False, and nothing done, if too much would be free."""
        rows = last - first
        if self.size > rows + 2 * growth(rows):  # twice: stepping back and forth must not copy every time
            return False
        self.start, self.end = self.start + first, self.start + last
        self.views = self._views()
        return True


def range_of(columns: list[bool]) -> tuple[int, int] | None:
    """First and last of the True ones if these are in a row."""
    count = sum(columns)
    first = columns.index(True) if count else 0
    return (first, first + count) if all(columns[first : first + count]) else None
