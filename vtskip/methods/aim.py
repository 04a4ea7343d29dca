"""AIM (arXiv 2412.03248): rows of a frame are merged before the first layer, and dropped for good by importance in later ones."""

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from vtskip.methods.base import LayerPlanner, Method
from vtskip.methods.skip_vision import places_of, take
from vtskip.plan import LIVE, MOVABLE, SCORES, DecoderShape, LayerPlan, Propagation, RowMap, RowSet, rows_to_keep
from vtskip.routers import topk_per_group
from vtskip.schedules import Keep


class AIM(Method):
    """Every frame or image is merged to ``ceil(keep * n)`` of its n rows; with depth these leave, all of them in the end.

    *Merging*: the rows of a frame at odd places are destinations, those at even places sources. The sources that are most
    similar (cosine) to a destination join their best one, which becomes the unweighted mean of itself and what joined it; at
    most half of the rows go in one round, and what is left is taken for another until few enough are. A destination keeps
    its place, and the others are left out of every layer. *Pruning*: of a sample's m merged rows ``trunc(m * rate)`` enter a
    layer, with a rate that falls evenly from 1 at layer ``first`` to 0 at layer ``stop``. A row's importance is what reaches
    it when equal mass on all rows moves five times along the attention map of the layer before, with softmax(logits / 0.1),
    root mean square over heads.

    Training-free. Differs from the release: rows that were dropped do not ask any more when importance is counted (there
    they are only masked, stay in the stream and give mass away, which in a test of 28 layers exchanges one row in three
    layers); rows left over by a round stay in the order of the image; positions are those of the places that are left (the
    release numbers the shorter sequence through); and images are merged as frames are (there, in OneVision, videos alone).
    Later rows send mass to earlier ones: neither images one by one nor a longer prompt keep the same rows.

    Attributes:
        keep: of each frame's rows, after merging; 1.0 merges none.
        first: the last layer with all merged rows; null prunes none. stop: the first layer without vision rows.
        steps, temperature: of the importance.
    """

    paper: ClassVar[str] = "AIM, arXiv 2412.03248"
    skips: ClassVar[str] = "everything: rows of a frame are merged, then dropped with depth by importance"
    published: ClassVar[str] = "TFLOPs 99.63 to 14.76 (LLaVA-OneVision-7B, 32 frames, from a roofline model)"

    name: Literal["aim"] = "aim"
    keep: Keep = 0.25
    first: int | None = Field(14, ge=0)
    stop: int = Field(22, ge=1)
    steps: int = Field(5, ge=1)
    temperature: float = Field(0.1, gt=0)

    @model_validator(mode="after")
    def _falls(self) -> "AIM":
        if self.first is not None and self.first >= self.stop:
            raise ValueError(f"stop {self.stop}: accepted are layers behind first, {self.first}")
        return self

    def rate(self, layer: int) -> float:
        """The share of the merged rows that enters ``layer``."""
        if self.first is None or layer <= self.first:
            return 1.0
        return max((self.stop - layer) / (self.stop - self.first), 0.0)

    def planner(self, layer: int, shape: DecoderShape) -> LayerPlanner | None:
        scored = layer + 1 < shape.layers and 0 < self.rate(layer + 1) < 1
        if self.keep == 1 and self.rate(layer) == 1 and not scored:
            return None
        return AIMPlanner(self, layer, scored)


class AIMPlanner(LayerPlanner):
    drops = True

    def __init__(self, method: AIM, index: int, scored: bool):
        super().__init__()
        self.index, self.share, self.rate = index, method.keep, method.rate(index)
        self.score = Propagation(method.steps, method.temperature) if scored else False
        self.skips_vision = self.rate == 0
        if index == 0 and self.share < 1:
            self.needs = frozenset({MOVABLE})

    def forward(self, rows: RowMap, hidden: Tensor) -> LayerPlan:
        edit = None
        if self.index == 0 and self.share < 1:
            edit = self.merge(rows, hidden)
        return LayerPlan.of(self.live(rows), score=self.score, edit=edit)

    def merge(self, rows: RowMap, hidden: Tensor) -> Tensor:
        """The stream with the merged rows in the places of their destinations; these are noted."""
        flat, left = hidden.flatten(0, 1), torch.zeros_like(rows.vision).flatten()
        for size in sorted({n for sizes in rows.sizes for n in sizes}):
            places = places_of(rows, size)
            merged, at = merge_to(flat[places], rows_to_keep(self.share, size))
            at = places.gather(1, at).flatten()
            left = left.index_fill(0, at, True)
            if len(at) < places.numel():
                flat = flat.index_copy(0, at, merged.flatten(0, 1).to(flat.dtype))
        sizes, kept = rows.kept_sizes(self.share), left.view_as(rows.vision)
        rows.memo["aim", "group"] = rows.one_group(kept, [sum(row) for row in sizes])
        rows.memo["aim", "live"] = rows.text_and(kept, sizes)
        rows.memo[LIVE] = rows.text.mask | kept
        return flat.view_as(hidden)

    def live(self, rows: RowMap) -> RowSet:
        """Rows that enter this layer; the same object as long as they are the same."""
        if self.rate == 1 or not rows.has_vision:
            return rows.memo.get(("aim", "live"), rows.everything)
        if self.rate == 0:
            rows.memo[LIVE] = rows.text.mask
            return rows.text
        key = ("aim", self.index)
        if key not in rows.memo:
            group = rows.memo.get(("aim", "group"), rows.by_sample)
            score = rows.memo[SCORES, self.index - 1].masked_fill(~rows.memo.get(LIVE, rows.valid), -1.0)
            kept = topk_per_group(score, group, self.rate, "trunc")
            rows.memo[key] = rows.text_and(kept, group.kept_counts(self.rate, "trunc"))
            rows.memo[LIVE] = rows.memo[key].mask
        return rows.memo[key]


def merge_to(x: Tensor, target: int) -> tuple[Tensor, Tensor]:
    """Rounds of :func:`merge_alternate` down to ``target`` rows: ``[G, n, hidden] -> [G, target, hidden]``, and the place
    ``[G, target]`` among the n of each, rising."""
    places = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
    while x.shape[1] > target:
        x, at = merge_alternate(x, max(target, x.shape[1] - x.shape[1] // 2))
        places = places.gather(1, at)
    return x, places


def merge_alternate(x: Tensor, left: int, raster: bool = True) -> tuple[Tensor, Tensor]:
    """One round: ``[G, n, hidden] -> [G, left, hidden]``, at least half of the rows, and the row ``[G, left]`` behind each.

    The release returns sources that were not merged by falling similarity, then the destinations (``raster=False``); here
    all stay in the order of the image. Ties go to the earlier row.
    """
    unit = nn.functional.normalize(x.detach().to(torch.promote_types(x.dtype, torch.float32)), dim=-1)
    best, choice = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(-1)
    order, goes = best.argsort(dim=1, descending=True, stable=True), x.shape[1] - left
    sources, stay = order[:, :goes], order[:, goes:]
    wide, target = x.to(unit.dtype), choice.gather(1, sources)[:, None]
    joins = unit.new_zeros(len(x), x.shape[1] // 2, goes).scatter(1, target, 1.0)
    destinations = wide[:, 1::2] + joins @ take(wide, 2 * sources)
    merged = torch.cat([take(wide, 2 * stay), destinations / (1 + joins.sum(-1, keepdim=True))], 1)
    at = torch.cat([2 * stay, torch.arange(1, x.shape[1], 2, device=x.device).expand(len(x), -1)], 1)
    if raster:
        at, order = at.sort(dim=1)
        merged = take(merged, order)
    return merged, at
