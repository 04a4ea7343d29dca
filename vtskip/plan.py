"""What a method may decide and what the executor runs: rows of one forward, and one plan per decoder layer.

Data only. A *row* is one position of a ``[B, S]`` batch. Nothing here knows a model, a kernel or a method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from vtskip.errors import ModelError
from vtskip.rowset import Rounding, RowSet, lazy, on_device, round_up, rows_to_keep, rows_to_keep_of

__all__ = [
    "ANSWERS",
    "CARRIED",
    "LIVE",
    "MOVABLE",
    "SCORES",
    "UNIFORM",
    "VIEWS",
    "VIT_CLS",
    "VIT_LOGITS",
    "DecoderShape",
    "LayerPlan",
    "Planner",
    "Propagation",
    "Rounding",
    "RowMap",
    "RowSet",
    "View",
    "moved_to",
    "rows_to_keep",
    "rows_to_keep_of",
    "run_lengths",
]


@dataclass(frozen=True)
class View:
    """How the rows of an anyres image lie: ``side * side`` of the whole view, then ``height`` lines of ``width`` cells, each
    line with a newline row behind it. The lines are what is left, from cell (``top``, ``left``) on, of a grid of
    ``tile_rows`` times ``tile_columns`` tiles with ``side * side`` cells each, without its padding."""

    side: int
    tile_rows: int
    tile_columns: int
    top: int
    left: int
    height: int
    width: int

    @property
    def size(self) -> int:
        """All rows of the image."""
        return self.side**2 + self.height * (self.width + 1)


@dataclass
class RowMap:
    """Which rows of a forward are vision, text or padding, and to which selection group a vision row belongs.

    Attributes:
        vision: ``[B, S]`` bool.
        valid: ``[B, S]`` bool, False on padding.
        group: ``[B, S]`` long, ordinal of the frame or image inside its sample, -1 on other rows.
        offset: ``[B, S]`` long, place of a vision row inside its group, 0 on other rows.
        position: ``[B, S]`` long, place of a row among the sample's content (padding not counted, past included).
        sizes: per sample, the number of rows of each group (host).
        text_counts: per sample, the number of text rows (host).
        memo: free space for a method that carries a decision from layer to layer within one forward.
        exact: the rows with their true numbers, where ``sizes`` and ``text_counts`` are upper bounds (``bounds``).
        ranks: ``(score, group) -> rank`` of the device, if it has a faster one than sorting.
        views: per sample, how the rows of each image lie, None for one without tiles; None where no image has any.
    """

    vision: Tensor
    valid: Tensor
    group: Tensor
    offset: Tensor
    position: Tensor
    sizes: tuple[tuple[int, ...], ...]
    text_counts: tuple[int, ...]
    memo: dict[Any, Any] = field(default_factory=dict)
    exact: RowMap | None = None
    bounds: bool = False
    ranks: Callable[[Tensor, Tensor], Tensor] | None = None
    views: tuple[tuple[View | None, ...], ...] | None = None

    @classmethod
    def build(
        cls,
        vision: np.ndarray,
        valid: np.ndarray | None = None,
        sizes: Sequence[Sequence[int]] | None = None,
        past: Sequence[int] | int = 0,
        device: torch.device | str = "cpu",
    ) -> RowMap:
        """From host arrays. ``sizes`` are the group sizes per sample; None makes each contiguous run one group.

        Raises:
            ModelError: the group sizes of a sample do not add up to its vision rows.
        """
        vision = np.asarray(vision, bool)
        valid = np.ones_like(vision) if valid is None else np.asarray(valid, bool)
        vision = vision & valid
        sizes = [run_lengths(row) for row in vision] if sizes is None else sizes
        group = np.full(vision.shape, -1, np.int64)
        offset = np.zeros(vision.shape, np.int64)
        for b, row in enumerate(sizes):
            n = int(vision[b].sum())
            if sum(row) != n:
                raise ModelError(f"sample {b}: groups of {list(row)} rows make {sum(row)}, but it has {n} vision rows")
            group[b, vision[b]] = np.repeat(np.arange(len(row)), row)
            offset[b, vision[b]] = np.concatenate([np.arange(s) for s in row]) if n else []
        position = valid.cumsum(1) - 1 + np.asarray(past).reshape(-1, 1)

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        return cls(
            vision=tensor(vision),
            valid=tensor(valid),
            group=tensor(group),
            offset=tensor(offset),
            position=tensor(position),
            sizes=tuple(tuple(int(s) for s in row) for row in sizes),
            text_counts=tuple(int(n) for n in (valid & ~vision).sum(1)),
            memo={ON_HOST: (vision, valid)},
        )

    def bucketed(self, bucket: int) -> RowMap:
        """The same rows with host numbers that many inputs share: bounds, rounded up to multiples of ``bucket`` rows.

        Shapes of gathered rows then depend on the bounds alone; the places that are too many hold fillers, so that all
        results stay the same. A graph compiled for one input serves every other one with the same bounds. Groups of
        unequal size keep their exact numbers.
        """
        sizes = {n for row in self.sizes for n in row}
        if len(sizes) != 1:
            return self
        size = sizes.pop()
        groups = -(-round_up(max(map(sum, self.sizes)), bucket) // size)
        text = round_up(max(self.text_counts), bucket)
        batch = len(self.sizes)
        return replace(
            self,
            sizes=((size,) * groups,) * batch,
            text_counts=(text,) * batch,
            memo=dict(self.memo),
            exact=self,
            bounds=True,
        )

    def is_all(self, rows: RowSet) -> bool:
        """Whether a set holds every row that is not padding."""
        return rows is self.everything if self.bounds else rows.counts == self.everything.counts

    def to(self, device: torch.device, seen: dict[int, Any] | None = None) -> RowMap:
        """These rows on another device, with what the methods have noted so far (layers of a model may be spread out)."""
        seen = {} if seen is None else seen
        return RowMap(**{f.name: moved_to(getattr(self, f.name), device, seen) for f in fields(self)})

    def within(self, live: RowSet, memo: dict[Any, Any]) -> RowMap:
        """These rows as a method sees them that may choose among the rows of ``live`` alone, all text included.

        Groups are what is left of them, or all of a sample's vision rows where ``live`` was not chosen group by group.
        """
        if live is self.everything:
            view = replace(self, memo=memo)
        else:
            vision, sizes = self.vision & live.mask, live.sizes
            group = self.group.masked_fill(~vision, -1)
            # Sizes of fewer groups are those of a view in which a sample's rows are one group.
            if sizes is None or [len(row) for row in sizes] != [len(row) for row in self.sizes]:
                counts = [n - text for n, text in zip(live.counts, self.text_counts)]
                group, sizes = vision.long() - 1, tuple((n,) if n else () for n in counts)
            rank = vision.long().cumsum(1) - 1
            left = group.new_zeros(len(group), max([0, *(len(row) for row in sizes)]) + 1)
            left = left.scatter_add(1, group + 1, vision.long())
            offset = (rank - (left.cumsum(1) - left).gather(1, group + 1)).masked_fill(~vision, 0)
            view = replace(
                self, vision=vision, valid=self.valid & live.mask, group=group, offset=offset, sizes=sizes, memo=memo
            )
        view.__dict__.update(everything=live, text=self.text)
        return view

    @property
    def has_vision(self) -> bool:
        return any(map(any, self.sizes))

    @lazy
    def everything(self) -> RowSet:
        """All rows that are not padding."""
        return RowSet(self.valid, [t + sum(s) for t, s in zip(self.text_counts, self.sizes)])

    @property
    def padded(self) -> bool:
        """Whether any row is padding."""
        return len(self.everything) < self.valid.numel()

    @lazy
    def text(self) -> RowSet:
        return RowSet(self.valid & ~self.vision, self.text_counts)

    def text_and(self, kept: Tensor, counts: Sequence[int] | Sequence[Sequence[int]]) -> RowSet:
        """Text rows together with the vision rows of ``kept`` ``[B, S]``: ``counts`` of them per sample, or of each group.

        Where those of each group are told, methods behind this one may choose group by group, too.
        """
        sums = [c if isinstance(c, int) else sum(c) for c in counts]
        found = RowSet(self.text.mask | kept, [t + c for t, c in zip(self.text_counts, sums)])
        if counts and not isinstance(counts[0], int):
            found.sizes = tuple(tuple(row) for row in counts if not isinstance(row, int))
        return found

    def kept_counts(self, keep: float, rounding: Rounding = "ceil") -> list[int]:
        """Vision rows per sample when each group keeps ``rows_to_keep(keep, size)``."""
        return [sum(row) for row in self.kept_sizes(keep, rounding)]

    def kept_sizes(self, keep: float, rounding: Rounding = "ceil") -> list[list[int]]:
        """The same per group."""
        return [[rows_to_keep(keep, s, rounding) for s in row] for row in self.sizes]

    @lazy
    def by_sample(self) -> RowMap:
        """The same rows with all vision rows of a sample in one group. Not causal: late frames compete with early ones."""
        return self.one_group(self.vision, [sum(row) for row in self.sizes])

    def one_group(self, mask: Tensor, counts: Sequence[int]) -> RowMap:
        """For ranking: the rows of ``mask`` ``[B, S]`` (``counts`` of them per sample), vision or not, as one group each."""
        rank = (mask.long().cumsum(1) - 1).clamp(min=0).masked_fill(~mask, 0)
        sizes = tuple((n,) if n else () for n in counts)
        return replace(self, group=mask.long() - 1, offset=rank, sizes=sizes, memo={})

    def per_group(self, values: Sequence[Sequence[int]]) -> Tensor:
        """Spread one host number per group over its rows: ``[B, S]`` long, 0 on rows outside any group."""
        width = max([0, *(len(row) for row in values)]) + 1
        table = on_device([n for row in values for n in [0, *row] + [0] * (width - 1 - len(row))], self.group.device)
        return table.view(len(values), width).gather(1, self.group + 1)

    @lazy
    def group_size(self) -> Tensor:
        """``[B, S]`` long: how many rows the group of this row has."""
        if not self.bounds:
            return self.per_group(self.sizes)
        table = self.group.new_zeros(len(self.group), max(map(len, self.sizes)) + 1)
        table = table.scatter_add(1, self.group + 1, torch.ones_like(self.group))
        return table.gather(1, self.group + 1).masked_fill(self.group < 0, 0)

    def group_keep(self, keep: float, rounding: Rounding = "ceil") -> Tensor:
        """``[B, S]`` long: how many rows the group of this row keeps."""
        key = (keep, rounding)
        if key not in self._keeps:
            if self.bounds:
                self._keeps[key] = rows_to_keep_of(self.group_size, keep, rounding)
            else:
                self._keeps[key] = self.per_group(self.kept_sizes(keep, rounding))
        return self._keeps[key]

    @lazy
    def _keeps(self) -> dict[tuple[float, Rounding], Tensor]:
        return {}


def moved_to(value: Any, device: torch.device, seen: dict[int, Any] | None = None) -> Any:
    """Tensors, row sets and row maps, alone or in a dict, on ``device``; anything else as it is.

    What is one object stays one: ``seen`` holds what has been moved, by its id.
    """
    seen = {} if seen is None else seen
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {k: moved_to(v, device, seen) for k, v in value.items()}
    if not isinstance(value, (RowMap, RowSet)):
        return value
    if id(value) not in seen:
        seen[id(value)] = value.to(device, seen) if isinstance(value, RowMap) else value.to(device)
    return seen[id(value)]


ON_HOST = "on host"  # key of RowMap.memo: `vision` and `valid` as they were given, numpy arrays
SCORES, CARRIED, VIT_CLS = "scores", "carried", "vit_cls"  # keys of RowMap.memo that the executor fills in
VIT_LOGITS, ANSWERS = "vit_logits", "answers"  # others
MOVABLE, VIEWS = "movable", "views"  # what a planner may need beside SCORES, VIT_CLS and VIT_LOGITS
UNIFORM = "uniform"  # key of RowMap.memo: every planner has to be asked, as those of other processes are
LIVE = (
    "live"  # key of RowMap.memo for a method that drops rows for good: ``[B, S]`` bool, the rows that are still there
)


def run_lengths(row: np.ndarray) -> list[int]:
    """Lengths of the runs of True in a boolean vector."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]])))
    return (edges[1::2] - edges[::2]).tolist()


@dataclass(frozen=True)
class Propagation:
    """A row's score by what reaches it: equal mass on all rows of a layer moves ``steps`` times from queries to keys along
    softmax(logits / ``temperature``); root mean square over heads."""

    steps: int
    temperature: float


@dataclass
class LayerPlan:
    """What one decoder layer does with each row.

    ``X' = gain_row * (X + attend * gain_attn * Attn + ffn * gain_ffn * FFN(norm(.)))``. Gains are ``[B, S]``, differentiable;
    None means 1. With ``gain_on="delta"`` the row gain weighs the layer's own contribution instead of its output:
    ``X' = X + gain_row * (Layer(X) - X)``. ``cache`` must be a subset of ``expose``.
    Rows outside ``attend`` and ``ffn`` leave as they came, times ``gain_row`` where ``gain_skipped`` is set.

    Attributes:
        gain_key: ``[B, S]``, differentiable, at least 0: how much of a row the others see, as a weight on the exponentials of
            attention; each row sees itself in full, and what earlier steps left. Slow: for training.
        score: leave this layer's attention of the last row in ``rows.memo[SCORES, layer]``, ``[B, S]``, or what a
            :class:`Propagation` over the rows that attend gives.
        edit: ``[B, S, hidden]``, what the rows enter this layer as instead (merged rows, rows written into free places).
        carry: ``[B, ...]``, kept with this layer's KV cache and shown to later steps as ``rows.memo[CARRIED, layer]``.
        aux: scalar added to the training loss.
    """

    attend: RowSet
    expose: RowSet
    ffn: RowSet
    cache: RowSet
    gain_attn: Tensor | None = None
    gain_ffn: Tensor | None = None
    gain_row: Tensor | None = None
    gain_key: Tensor | None = None
    gain_on: Literal["output", "delta"] = "output"
    gain_skipped: bool = False
    score: bool | Propagation = False
    edit: Tensor | None = None
    carry: Tensor | None = None
    aux: Tensor | None = None

    @classmethod
    def of(cls, rows: RowSet, **gains: Any) -> LayerPlan:
        """The same rows everywhere: attention, FFN and cache."""
        return cls(rows, rows, rows, rows, **gains)

    @property
    def one_set(self) -> bool:
        """True if the layer can run natively on one gathered set of rows."""
        same = self.attend is self.expose is self.ffn
        return same and self.gain_attn is None and self.gain_ffn is None and self.gain_key is None


class Planner(Protocol):
    """Decides for one layer; an ``nn.Module``, so that router parameters live inside the layer they route.

    A pure function of its inputs: the same rows and hidden states give the same plan, whatever was seen before. In training
    it is asked on steps without vision rows too, and then leaves every row running: a process whose batch has no image
    has to call the same modules as the others.

    Attributes:
        sees: ``stream`` is given the layer's input, ``normed`` the input after the layer's first norm, ``both`` the input
            and that norm.
        every_step: asked on steps without vision rows too.
        compact: the layer numbers the rows it runs 0, 1, 2, ... instead of by their places in the sequence.
        skips_vision: no vision row takes part in this layer, whatever the input: nothing reads what earlier layers make
            of them, if all later layers say so too.
        needs: what not every model has; the others are refused at attach. ``VIT_CLS``: the attention of the vision
            tower's CLS token to each row's patch, offered as ``rows.memo[VIT_CLS]`` ``[B, S]`` (0 on other rows).
            ``VIT_LOGITS``: the same in the tower's last layer before the softmax, mean over heads, of tiled images, too.
            ``ANSWERS``: where labels are given, ``[B, S]`` bool, the rows whose own token is one, as ``rows.memo[ANSWERS]``.
            ``VIEWS``: ``rows.views`` of images that were encoded before the forward.
            ``MOVABLE``: values may move from one vision row to another, as no later layer adds to rows by their place.
    """

    sees: Literal["stream", "normed", "both"]
    every_step: bool
    compact: bool
    skips_vision: bool
    needs: frozenset[str]

    def __call__(self, rows: RowMap, hidden: Tensor, *norm: Any) -> LayerPlan: ...


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a decoder, in the field's terms; what a method and the cost model need to know of a model."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
