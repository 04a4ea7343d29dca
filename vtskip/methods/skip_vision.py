"""Skip-Vision (arXiv 2503.21817): retained rows run in full, the others are merged and run attention only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vtskip.methods.base import LayerPlanner, Method
from vtskip.plan import MOVABLE, VIT_CLS, DecoderShape, LayerPlan, RowMap, RowSet, rows_to_keep
from vtskip.routers import Router
from vtskip.schedules import Keep

Count = Annotated[int, Field(ge=2)]  # 1 is read as the fraction 1.0


class SkipVision(Method):
    """Every image keeps its best rows; its other rows are merged and run the attention, but not the FFN, of every layer.

    Of an image's n rows, k are *retained*. Among the other s the most redundant ones (by their summed cosine similarity)
    join their most similar neighbour, until m are left: the *skipped* rows. A learned softmax pooling adds one *summary* row
    for each of the two groups. All are written into the image's own places in the published order: retained rows as in the
    image, summary, skipped rows, summary. The places behind them are left out of every layer. All other rows keep their
    position ids, so a gap stays in front of the next text row (the release numbers the shorter sequence through), and rows
    with positions in two dimensions take those of their new places. Everything is decided per image, so feeding images one
    by one gives the same.

    Attributes:
        retain: which rows: ``cls``, by the attention of the vision tower's CLS token, summed over heads (needs one row per
            patch of a CLIP tower); ``even``, at equal distances; ``first``.
        keep: how many are retained: a number of 2 or more, or a fraction (rounded up).
        merged: how many of the others are left after merging, as a number or a fraction; null merges none of them, but for
            the two most redundant ones where summaries need their places.
        summaries: add the two summary rows; left out where fewer than three rows are skipped.
        pass_last: the last skipped row runs the FFN too.
        drop_kv: once the prompt has read them, the K/V of rows without FFN leave the cache. Later rows then see less than
            the prompt did, so cached decoding differs from recomputation by design.
        seed: of the summaries' initial weights.
    """

    paper: ClassVar[str] = "Skip-Vision, arXiv 2503.21817"
    trained: ClassVar[bool] = True
    skips: ClassVar[str] = "FFN of vision rows that are not retained, after merging them; with drop_kv their KV"
    published: ClassVar[str] = (
        "FLOPs 25 % (LLaVA, Llama-3-8B, 100 + 156 of 576 rows; 30.5 % counted in full), 50 % (HD)"
    )

    name: Literal["skip_vision"] = "skip_vision"
    retain: Literal["cls", "even", "first"] = "cls"
    keep: Count | Keep = 0.1736  # 100 of 576
    merged: Count | Keep | None = 0.3277  # 156 of 476
    summaries: bool = True
    pass_last: bool = False
    drop_kv: bool = True
    seed: int = 0

    def planner(self, layer: int, shape: DecoderShape) -> LayerPlanner:
        return SkipVisionPlanner(
            self, Summary(shape.hidden, self.seed) if self.summaries and layer == 0 else None, layer
        )

    def split(self, size: int) -> Split:
        """How an image of ``size`` rows is divided."""
        retained = min(count(self.keep, size), size)
        others = size - retained
        summaries = self.summaries and others > 2
        skipped = others if self.merged is None else min(count(self.merged, others), others)
        return Split(retained, min(skipped, others - 2) if summaries else skipped, summaries)


@dataclass(frozen=True)
class Split:
    """Rows of one image: retained and skipped ones, and whether a summary follows each of the two groups."""

    retained: int
    skipped: int
    summaries: bool

    @property
    def first(self) -> int:
        """Place of the first skipped row inside the image."""
        return self.retained + self.summaries

    @property
    def used(self) -> int:
        """Places that hold a row."""
        return self.first + self.skipped + self.summaries


class Summary(nn.Module):
    """Softmax pooling over rows, scored by ``Linear(LayerNorm(row))``, in fp32 or wider."""

    def __init__(self, hidden: int, seed: int = 0):
        super().__init__()
        self.norm, self.score = nn.LayerNorm(hidden), Router(hidden, seed=seed)

    def forward(self, rows: Tensor) -> Tensor:
        """Scores ``[m]`` of rows ``[m, hidden]``. One tensor in and one out, whatever the images: ZeRO-3 gathers a module's
        weights once in backward for each tensor that it gave, and that has to be as often in every process.
        """
        return self.score(self.norm(rows))

    def pooled(self, groups: list[Tensor]) -> list[Tensor]:
        """``[G, n, hidden]`` each to ``[G, 1, hidden]``. All in one call, so that every process calls the scorer once."""
        dtype = next(self.parameters()).dtype  # not by a name, which ZeRO-3 takes for a use of the whole weight
        scores = self(torch.cat([x.flatten(0, 1).to(dtype) for x in groups]))
        parts = scores.split([x.shape[0] * x.shape[1] for x in groups])
        return [s.view(x.shape[:2]).softmax(-1)[:, None] @ x.to(s.dtype) for s, x in zip(parts, groups)]


class SkipVisionPlanner(LayerPlanner):
    drops = True

    def __init__(self, method: SkipVision, summary: Summary | None, layer: int):
        super().__init__()
        self.method, self.summary, self.first = method, summary, layer == 0
        if self.first:
            self.needs = frozenset({MOVABLE, VIT_CLS} if method.retain == "cls" else {MOVABLE})

    def forward(self, rows: RowMap, hidden: Tensor) -> LayerPlan:
        live, full = self.sets(rows)
        plan = LayerPlan(attend=live, expose=live, ffn=full, cache=full if self.method.drop_kv else live)
        if self.first:
            plan.edit = self.edit(rows, hidden)
        return plan

    def sets(self, rows: RowMap) -> tuple[RowSet, RowSet]:
        """Rows that exist, and those of them that run the FFN; the same objects in every layer."""
        live_key, full_key = ("skip_vision", "live"), ("skip_vision", "full")
        if live_key not in rows.memo:
            splits = [[self.method.split(n) for n in sizes] for sizes in rows.sizes]
            used, start = ([[getattr(s, name) for s in row] for row in splits] for name in ("used", "first"))
            passed = int(self.method.pass_last)
            lean = [[max(s.skipped - passed, 0) for s in row] for row in splits]  # rows without FFN
            live = rows.vision & (rows.offset < rows.per_group(used))
            place = rows.offset - rows.per_group(start)
            full = live & ((place < 0) | (place >= rows.per_group(lean)))
            counts = [[u - n for u, n in zip(*row)] for row in zip(used, lean)]
            all_live = used == [list(sizes) for sizes in rows.sizes]
            rows.memo[live_key] = kept = rows.everything if all_live else rows.text_and(live, used)
            rows.memo[full_key] = rows.text_and(full, counts) if any(map(any, lean)) else kept
        return rows.memo[live_key], rows.memo[full_key]

    def edit(self, rows: RowMap, hidden: Tensor) -> Tensor:
        """The stream with every image rewritten."""
        flat, groups, parts = hidden.flatten(0, 1), [], []
        for size in sorted({n for sizes in rows.sizes for n in sizes}):
            split = self.method.split(size)
            if split.retained == size:
                continue
            places = places_of(rows, size)
            order = places.gather(1, self.retained(rows, places, split.retained))
            kept = flat[order[:, : split.retained]]
            others, _ = merge_redundant(flat[order[:, split.retained :]], split.skipped)
            parts.append((places[:, : split.used], [kept, others]))
            groups += [kept, others] if split.summaries else []
        summaries = iter([] if self.summary is None else self.summary.pooled(groups or [hidden[:1, :1]]))
        if not groups and self.summary is not None:  # nothing to sum up, but the parameters are part of every step
            flat = flat + next(summaries).sum().to(flat.dtype) * 0
        for places, (kept, others) in parts:
            values = [kept, others]
            if places.shape[1] > kept.shape[1] + others.shape[1]:
                values = [kept, next(summaries), others, next(summaries)]
            new = torch.cat([v.to(flat.dtype) for v in values], 1)
            flat = flat.index_copy(0, places.flatten(), new.flatten(0, 1))
        return flat.view_as(hidden)

    def retained(self, rows: RowMap, places: Tensor, k: int) -> Tensor:
        """``[G, n]``: the offsets of the ``k`` retained rows of every image, then of the others, both in image order."""
        size = places.shape[1]
        offset = torch.arange(size, device=places.device).expand_as(places)
        if self.method.retain == "cls":
            best = rows.memo[VIT_CLS].flatten()[places].argsort(dim=1, descending=True, stable=True)[:, :k]
            chosen = torch.zeros_like(places, dtype=torch.bool).scatter(1, best, True)
        else:
            chosen = offset * k % size < k if self.method.retain == "even" else offset < k
        return (~chosen).to(torch.uint8).argsort(dim=1, stable=True)


def count(amount: float, size: int) -> int:
    """A number of rows as it stands, a fraction of ``size`` rounded up."""
    return amount if isinstance(amount, int) else rows_to_keep(amount, size)


def places_of(rows: RowMap, size: int) -> Tensor:
    """``[G, size]``: where in the flattened batch the rows of the G images of ``size`` rows are."""
    images = sum(n == size for sizes in rows.sizes for n in sizes)
    here = rows.vision & (rows.group_size == size)
    return (~here).flatten().to(torch.uint8).argsort(stable=True)[: images * size].view(images, size)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows ``[G, m]`` of ``[G, n, hidden]``."""
    return x[torch.arange(len(x), device=x.device)[:, None], index]


def merge_redundant(x: Tensor, left: int, raster: bool = True) -> tuple[Tensor, Tensor]:
    """Merge n rows to ``left``: ``[G, n, hidden] -> [G, left, hidden]``, and the row ``[G, left]`` behind each.

    The n - left rows with the largest sum of cosine similarities to the others each join the most similar of the remaining
    ones, which become the unweighted mean of themselves and what joined them. The release returns them by falling
    redundancy (``raster=False``); here they stay in the order of the image. Ties go to the earlier row.
    """
    unit = nn.functional.normalize(x.detach().to(torch.promote_types(x.dtype, torch.float32)), dim=-1)
    redundancy = (unit * (unit.sum(1, keepdim=True) - unit)).sum(-1)
    order = redundancy.argsort(dim=1, descending=True, stable=True)
    sources, stay = order[:, : x.shape[1] - left], order[:, x.shape[1] - left :]
    stay = stay.sort(dim=1).values if raster else stay
    best = (take(unit, stay) @ take(unit, sources).transpose(1, 2)).argmax(1)[:, None]
    joins = unit.new_zeros(len(x), left, sources.shape[1]).scatter(1, best, 1.0)
    total = take(x, stay).to(unit.dtype) + joins @ take(x, sources).to(unit.dtype)
    return total / (1 + joins.sum(-1, keepdim=True)), stay
