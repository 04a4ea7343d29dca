"""PyramidDrop (arXiv 2410.17247): vision rows are dropped for good in stages, those first that the last row attends to least."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor

from vtskip.methods.base import LayerPlanner, Method
from vtskip.plan import LIVE, SCORES, DecoderShape, LayerPlan, RowMap, RowSet
from vtskip.routers import topk_per_group
from vtskip.schedules import Keep


class PyramidDrop(Method):
    """At the entry of each of ``layers`` only the ``trunc(keep * n)`` best of a sample's n vision rows go on.

    A row's score is the attention it gets from the last row among the rows still there, with the coming layer's own Q and K,
    mean over heads. ``keep`` counts from the first number of rows, not from the last stage's. Rows keep their positions (the
    release numbers them anew after each stage), and in training the last row of the sample decides (the release averages
    over the rows before its answers). Ranked over the whole sample when they come in: neither images one by one nor a longer
    prompt select the same rows. Training-free or with fine-tuning.

    Attributes:
        layers: where a stage begins; keep: what is left from there on.
    """

    paper: ClassVar[str] = "PyramidDrop, arXiv 2410.17247"
    skips: ClassVar[str] = "everything, for vision rows with little attention, in stages with depth"
    published: ClassVar[str] = "55 % fewer FLOPs without training (LLaVA-NeXT); 51.8 % left at 576 rows"

    name: Literal["pyramid_drop"] = "pyramid_drop"
    layers: list[int] = Field([8, 16, 24], min_length=1)
    keep: list[Keep] = [0.5, 0.25, 0.125]

    @model_validator(mode="after")
    def _stages(self) -> "PyramidDrop":
        if len(self.keep) != len(self.layers):
            raise ValueError(f"{len(self.layers)} layers but {len(self.keep)} values of keep")
        if (
            sorted(set(self.layers)) != self.layers
            or self.layers[0] < 0
            or sorted(self.keep, reverse=True) != self.keep
        ):
            raise ValueError("layers must rise from 0 on and keep must not")
        return self

    def planner(self, layer: int, shape: DecoderShape) -> LayerPlanner | None:
        begun = [stage for stage, first in enumerate(self.layers) if first <= layer]
        return PyramidPlanner(self, layer, begun[-1]) if begun else None


class PyramidPlanner(LayerPlanner):
    drops = True

    def __init__(self, method: PyramidDrop, index: int, stage: int):
        super().__init__()
        self.index, self.stage, self.keep = index, stage, method.keep[stage]
        self.needs = frozenset({SCORES} if index == method.layers[stage] else ())

    def forward(self, rows: RowMap, hidden: Tensor) -> LayerPlan:
        return LayerPlan.of(self.kept(rows))

    def kept(self, rows: RowMap) -> RowSet:
        """Decided where the stage begins, the same object until the next one."""
        key = ("pyramid_drop", self.stage)
        if key not in rows.memo:
            sample = rows.by_sample
            score = rows.memo[SCORES, self.index].masked_fill(~rows.memo.get(LIVE, rows.valid), -1.0)
            kept = topk_per_group(score, sample, self.keep, "trunc")
            rows.memo[key] = rows.text_and(kept, sample.kept_counts(self.keep, "trunc"))
            rows.memo[LIVE] = rows.memo[key].mask
        return rows.memo[key]
