"""How the rows of a set lie while a layer runs them: packed behind one another, or padded to the sample with most."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vtskip.kernels import dispatch
from vtskip.models.norms import rms_of
from vtskip.rowset import RowSet, lazy
from vtskip.runtime.carried import Carried, rest_of


class Layout:
    """Rows of a set as one tensor: *packed* ``[1, T, ...]`` without fillers, *padded* ``[B, width, ...]`` with them.

    Attributes:
        rows: the set. packed: which of the two; sets whose counts are bounds are always padded.
        index: the rows' places in the flattened batch. ok: False on fillers, of the leading shape; None where there is none.
        lens: rows of each sample in the tensor, fillers included (host).
        all: they are the rows of the flattened batch as it is.
        fused: rows are moved by kernels that do more than move them (:mod:`vtskip.kernels.dispatch`).
    """

    def __init__(self, rows: RowSet, packed: bool, fused: bool = False):
        self.rows, self.packed, self.fused = rows, packed and not rows.bounds, fused
        self.index: Tensor = rows.flat if self.packed else rows.flat_index
        self.ok: Tensor | None = None if self.packed else rows.ok
        self.lead = (1, len(rows)) if self.packed else (len(rows.mask), rows.width)
        self.lens: Sequence[int] = rows.counts if self.packed else (rows.width,) * len(rows.mask)
        self.all = self.packed and rows.samples is None and len(rows) == rows.mask.numel()

    @property
    def empty(self) -> bool:
        return 0 in self.lead

    @lazy
    def columns(self) -> Tensor:
        """``[T]`` or ``[B * width]``: place of each row in its sample."""
        return self.index % self.rows.mask.shape[1]

    def take(self, t: Tensor) -> Tensor:
        """The rows of ``[B, S, ...]`` or of a shared ``[1, S, ...]``."""
        if isinstance(t, Carried) and t.lies_in(self):
            return t.packed
        if self.all and t.shape[0] == len(self.lens):
            return t.reshape(1, -1, *t.shape[2:])
        index = self.columns if t.shape[0] == 1 else self.index
        return t.reshape(-1, *t.shape[2:]).index_select(0, index).view(*self.lead, *t.shape[2:])

    def take_all(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The same of several tensors, at once where they share no gradient."""
        if not self.fused or any(t.requires_grad and t.shape[0] == 1 for t in tensors):
            return tuple(self.take(t) for t in tensors)
        taken = dispatch.gather_rows(self.index, *(t.reshape(-1, *t.shape[2:]) for t in tensors))
        return tuple(t.view(*self.lead, *t.shape[1:]) for t in taken)

    def take_normed(self, x: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
        """The rows of ``x``, and the same after ``norm``."""
        rms = rms_of(norm, x.dtype) if self.fused else None
        if rms is None or (isinstance(x, Carried) and x.lies_in(self)):
            rows = self.take(x)
            return rows, norm(rows)
        rows, normed = dispatch.gather_norm(x.reshape(-1, x.shape[-1]), self.index, *rms)
        return rows.view(*self.lead, -1), normed.view(*self.lead, -1)

    def update(self, base: Tensor, rows: Tensor, gain: Tensor | None, mode: str, fresh: bool = False) -> Tensor:
        """``base`` ``[B, S, D]`` with these rows weighed and added, written or blended in; fillers change nothing.

        ``gain``: of these rows, or None. ``mode``: of :func:`vtskip.kernels.reference.scatter_update`. ``fresh``: ``base``
        is contiguous and nobody else's.
        """
        gain, ok = (None if t is None else t.reshape(-1) for t in (gain, self.ok))
        flat = base.reshape(-1, base.shape[-1])
        flat = dispatch.scatter_update(flat, self.index, rows.flatten(0, 1), gain, mode, ok, fresh)
        return shaped(flat, base)

    def write(self, base: Tensor, new: Tensor, old: Tensor) -> Tensor:
        """A copy of ``base`` with ``new`` in it; ``old`` is what these rows are there."""
        base = rest_of(base, self)
        return self.update(base, new, None, "write") if self.fused else self.put(base, self.kept(new, old))

    def kept(self, new: Tensor, old: Tensor) -> Tensor:
        """``new``, but ``old`` on filler rows, which belong to no set."""
        return new if self.ok is None else torch.where(self.ok[..., None], new, old)

    def put(self, base: Tensor, rows: Tensor) -> Tensor:
        """A copy of ``base`` ``[B, S, D]`` with these rows in it."""
        rows = rows.flatten(0, 1).to(base.dtype)
        flat = rows if self.all else base.reshape(-1, base.shape[-1]).index_copy(0, self.index, rows)
        return shaped(flat, base)

    def put_(self, base: Tensor, rows: Tensor) -> Tensor:
        """The same into ``base``, which is contiguous and nobody else's."""
        base.view(-1, base.shape[-1]).index_copy_(0, self.index, rows.flatten(0, 1).to(base.dtype))
        return base

    def add(self, base: Tensor, delta: Tensor, fresh: bool) -> Tensor:
        """``base`` plus ``delta`` at these rows; ``fresh``: into ``base``, which is contiguous and nobody else's."""
        flat, delta = base.reshape(-1, base.shape[-1]), delta.flatten(0, 1).to(base.dtype)
        if fresh:
            base.view(flat.shape).index_add_(0, self.index, delta)
            return base
        return shaped(flat.index_add(0, self.index, delta), base)

    # ---------------------------------------------------------------- heads: [1, heads, T, d] or [B, heads, width, d]

    def padded(self, t: Tensor) -> Tensor:
        """``[B, heads, width, d]``, zeros on fillers; as it is where it is padded already."""
        return self._spread(t, self.rows.slots, len(self.rows.mask), self.rows.width) if self.packed else t

    def spread(self, t: Tensor, batch: int) -> Tensor:
        """``[batch, heads, S, d]`` of packed rows: each in its column, zeros on all others."""
        return self._spread(t, self.index, batch, self.rows.mask.shape[1])

    def _spread(self, t: Tensor, index: Tensor, batch: int, length: int) -> Tensor:
        if t.shape[2] == batch * length:  # all of them, in this order
            return t[0].unflatten(1, (batch, length)).transpose(0, 1)
        rows = t[0].transpose(0, 1)
        flat = rows.new_zeros(batch * length, *rows.shape[1:]).index_copy(0, index, rows)
        return flat.view(batch, length, *rows.shape[1:]).transpose(1, 2)

    def unpadded(self, t: Tensor) -> Tensor:
        """The way back from :meth:`padded`, of ``[B, width, ...]``."""
        if not self.packed:
            return t
        flat = t.flatten(0, 1)
        return (flat if len(flat) == len(self.rows) else flat.index_select(0, self.rows.slots))[None]


def shaped(flat: Tensor, like: Tensor) -> Tensor:
    """A new tensor's rows ``[B * S, D]`` as ``[B, S, D]``, and no view of it to autograd: FSDP2 warns of layers that return
    one, because somebody who writes into it would undo its hooks.
    """
    return torch.ops.aten._unsafe_view(flat, like.shape)
