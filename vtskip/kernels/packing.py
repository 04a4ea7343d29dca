"""Packed rows: which query rows of a batch meet which key rows, told once for all layers that run the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vtskip.kernels.reference import visible_ranges
from vtskip.rowset import on_device


class Segment(NamedTuple):
    """Packed queries ``q0`` to ``q1 - 1``; the last one sees keys ``k0`` to ``k1 - 1``, each earlier one a key less."""

    q0: int
    q1: int
    k0: int
    k1: int


class PackedRows:
    """Query rows and key rows of a batch, samples one after another, and who sees whom.

    Make one per pair of row sets and forward, and hand it to every layer that runs them: borders, ranges and masks are made
    once, and nothing here reads the device.

    Args:
        lens_q, lens_k: rows of each sample (host).
        q_pos: ``[Tq]`` positions of the queries, increasing within a sample.
        k_pos: ``[Tk]`` of the keys, likewise; ``[B, n]`` where keys are padded (a KV cache), then ``lens_k`` is ``n`` each.
        key_ok: False on keys that nobody sees, of the shape of ``k_pos``; their positions may be anything.
        same_rows: queries and keys are the same rows.
        consecutive: the positions of every sample follow one another without gaps, in queries and keys.
        segments: what :func:`segments_of` makes of the row sets, for back ends that know no positions.
    """

    def __init__(
        self,
        lens_q: Sequence[int],
        lens_k: Sequence[int],
        q_pos: Tensor,
        k_pos: Tensor,
        key_ok: Tensor | None = None,
        *,
        same_rows: bool = False,
        consecutive: bool = False,
        segments: Sequence[Segment] | None = None,
    ):
        self.lens_q, self.lens_k = tuple(lens_q), tuple(lens_k)
        self.cu_q, self.cu_k = (tuple(accumulate(lens, initial=0)) for lens in (self.lens_q, self.lens_k))
        if key_ok is not None:  # the others may stand anywhere: put them beside the key before them, in order
            k_pos = k_pos.masked_fill(~key_ok, -1)
            k_pos = self._sorted(k_pos)
        self.q_pos, self.k_pos = q_pos.reshape(-1), k_pos.reshape(-1)
        self.key_ok = None if key_ok is None else key_ok.reshape(-1)
        self.same_rows, self.consecutive = same_rows, consecutive
        self.segments = None if segments is None else tuple(segments)
        self._memo: dict[Any, Any] = {}

    def _sorted(self, k_pos: Tensor) -> Tensor:
        if k_pos.dim() == 2:
            return k_pos.cummax(1).values
        return torch.cat([part.cummax(0).values for part in k_pos.split(self.lens_k)])

    def borders(self, which: str) -> Tensor:
        """``cu_q`` or ``cu_k`` on the device, int32, without waiting for it."""
        if which not in self._memo:
            self._memo[which] = on_device(getattr(self, which), self.q_pos.device).int()
        return self._memo[which]

    def ranges(self, window: int | None = None) -> tuple[Tensor, Tensor]:
        """:func:`vtskip.kernels.reference.visible_ranges` of these rows."""
        if ("ranges", window) not in self._memo:
            cu_q, cu_k = self.borders("cu_q"), self.borders("cu_k")
            self._memo["ranges", window] = visible_ranges(self.q_pos, self.k_pos, cu_q, cu_k, window)
        return self._memo["ranges", window]

    def causal(self, sample: int, window: int | None) -> bool:
        """Whether order alone says who sees whom in a sample: no mask is needed."""
        if not self.same_rows or self.key_ok is not None:
            return False
        return window is None or (self.consecutive and self.lens_q[sample] <= window)

    def mask(self, sample: int, window: int | None = None) -> Tensor:
        """``[queries, keys]`` bool of one sample, True where visible."""
        key = ("mask", sample, window)
        if key not in self._memo:
            q = self.q_pos[self.cu_q[sample] : self.cu_q[sample + 1], None]
            keys = slice(self.cu_k[sample], self.cu_k[sample + 1])
            k = self.k_pos[keys]
            seen = k <= q if window is None else (k <= q) & (k > q - window)
            self._memo[key] = seen if self.key_ok is None else seen & self.key_ok[keys]
        return self._memo[key]

    def stairs(self, block: int, dtype: torch.dtype) -> Tensor:
        """``[block, most keys of a sample + block]``: 0 where visible, else -inf, for the last ``block`` queries of a causal
        square that ends at the last column. Columns further to the left make the masks of earlier blocks."""
        key = ("stairs", block, dtype)
        if key not in self._memo:
            width = max(self.lens_k) + block
            hidden = torch.ones(block, width, dtype=torch.bool, device=self.q_pos.device).triu(width - block + 1)
            self._memo[key] = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill(
                hidden, -torch.inf
            )
        return self._memo[key]


def segments_of(queries: np.ndarray, keys: np.ndarray, past: Sequence[int] | None = None) -> list[Segment]:
    """The segments of two row sets, ``[B, S]`` bool each (host), packed; ``past`` keys of each sample lie before its new ones.

    A segment is a run of queries with exactly one key more from each to the next: text between two frames that only
    expose K and V is one, since a causal kernel whose diagonal ends at the bottom right needs nothing else.
    """
    found, q0, k0 = [], 0, 0
    for sample, (asking, shown) in enumerate(zip(queries, keys)):
        before = past[sample] if past is not None else 0
        ends = before + shown.cumsum()[asking]
        breaks = np.flatnonzero(np.diff(ends) != 1) + 1
        for first, last in zip([0, *breaks], [*breaks, len(ends)]):
            if last > first:
                found.append(Segment(q0 + int(first), q0 + int(last), k0, k0 + int(ends[last - 1])))
        q0, k0 = q0 + len(ends), k0 + before + int(shown.sum())
    return found
