"""FastV (arXiv 2403.06764): vision rows that the last row hardly attends to are dropped for good."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from vtskip.methods.base import LayerPlanner, Method
from vtskip.plan import SCORES, DecoderShape, LayerPlan, RowMap, RowSet
from vtskip.routers import topk_per_group
from vtskip.schedules import Keep


class FastV(Method):
    """From ``layer`` on, only text and the ``ceil(keep * n)`` best vision rows of a sample remain.

    A row's score is the attention it gets from the last row in the layer before, mean over heads (the released rule; the
    paper's text averages over all queries). Training-free. Rows are ranked over the whole sample when they come in, so
    neither feeding images one by one nor a longer prompt selects the same rows.

    Attributes:
        layer: K, the first layer without the dropped rows; layers 0 to K - 1 are dense.
    """

    paper: ClassVar[str] = "FastV, arXiv 2403.06764"
    skips: ClassVar[str] = "everything, for vision rows with little attention, from one layer on"
    published: ClassVar[str] = "FLOPs 57 to 58 % (LLaVA-1.5, half the rows from layer 2), 51 to 52 % (NeXT)"

    name: Literal["fastv"] = "fastv"
    keep: Keep = 0.5
    layer: int = Field(2, ge=1)

    def planner(self, layer: int, shape: DecoderShape) -> LayerPlanner | None:
        if layer < self.layer - 1 or self.layer >= shape.layers:
            return None
        return FastVPlanner(self, layer)


class FastVPlanner(LayerPlanner):
    drops = True

    def __init__(self, method: FastV, index: int):
        super().__init__()
        self.keep, self.layer, self.score = method.keep, method.layer, index < method.layer

    def forward(self, rows: RowMap, hidden: Tensor) -> LayerPlan:
        return LayerPlan.of(rows.everything, score=True) if self.score else LayerPlan.of(self.kept(rows))

    def kept(self, rows: RowMap) -> RowSet:
        """Decided at the entry of the first dropping layer, the same object in all later ones."""
        if "fastv" not in rows.memo:
            sample = rows.by_sample
            kept = topk_per_group(rows.memo[SCORES, self.layer - 1], sample, self.keep)
            rows.memo["fastv"] = rows.text_and(kept, sample.kept_counts(self.keep))
        return rows.memo["fastv"]
