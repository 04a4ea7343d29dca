"""Keeping rows without looking at them: the controls every learned selection has to beat at equal counts."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from vtskip.methods.base import LayerPlanner, Method
from vtskip.plan import DecoderShape, LayerPlan, RowMap
from vtskip.routers import AlwaysKeep, evenly_per_group, favour, position_noise, topk_per_group
from vtskip.schedules import Interleaved, Keep, Schedule


class Random(Method):
    """The same number of rows per frame as ``mod``, drawn at random without replacement.

    The draw is a pure function of seed, layer and content position: the same in any batch, chunking or rerun. (VideoLLM-MoD's
    own random rows keep tokens of the first frame only; these do not.) ``always_keep`` is that of ``mod``.
    """

    skips: ClassVar[str] = "attention, FFN and KV of random rows, per frame, in every other layer"

    name: Literal["random"] = "random"
    keep: Keep = 0.2
    schedule: Schedule = Interleaved()
    always_keep: AlwaysKeep = "none"
    seed: int = 0

    def planner(self, layer: int, shape: DecoderShape) -> LayerPlanner | None:
        keep = self.schedule.resolve(shape.layers, self.keep)[layer]
        return None if keep is None else RandomPlanner(keep, self.seed * 1000 + layer, self.always_keep)


class RandomPlanner(LayerPlanner):
    def __init__(self, keep: float, seed: int, always_keep: AlwaysKeep = "none"):
        super().__init__()
        self.keep, self.seed, self.always_keep = keep, seed, always_keep

    def forward(self, rows: RowMap, hidden: Tensor) -> LayerPlan:
        noise = position_noise(rows.position, self.seed)
        kept = topk_per_group(favour(noise, rows, self.always_keep), rows, self.keep)
        return LayerPlan.of(rows.text_and(kept, rows.kept_counts(self.keep)))


class Uniform(Method):
    """The same number of rows per frame as ``mod``, at equal distances inside the frame.

    With ``always_keep: last`` the last row takes the place of the last of these; the first is always among them.
    """

    skips: ClassVar[str] = "attention, FFN and KV of evenly spaced rows, per frame, in every other layer"

    name: Literal["uniform"] = "uniform"
    keep: Keep = 0.2
    schedule: Schedule = Interleaved()
    always_keep: AlwaysKeep = "none"

    def planner(self, layer: int, shape: DecoderShape) -> LayerPlanner | None:
        keep = self.schedule.resolve(shape.layers, self.keep)[layer]
        return None if keep is None else UniformPlanner(keep, self.always_keep)


class UniformPlanner(LayerPlanner):
    def __init__(self, keep: float, always_keep: AlwaysKeep = "none"):
        super().__init__()
        self.keep, self.always_keep = keep, always_keep

    def forward(self, rows: RowMap, hidden: Tensor) -> LayerPlan:
        kept = evenly_per_group(rows, self.keep)
        if self.always_keep != "none":
            kept = topk_per_group(favour(kept.float(), rows, self.always_keep), rows, self.keep)
        return LayerPlan.of(rows.text_and(kept, rows.kept_counts(self.keep)))


class LayerSkip(Method):
    """No vision row runs in the layers of ``schedule`` (every other one by default): the depth baseline of VideoLLM-MoD.

    The release takes the separators between frames out as well; here they are text and stay.
    """

    paper: ClassVar[str] = "baseline of VideoLLM-MoD, arXiv 2408.16730"
    skips: ClassVar[str] = "attention, FFN and KV of all vision rows, in every other layer"

    name: Literal["layer_skip"] = "layer_skip"
    schedule: Schedule = Interleaved()

    def planner(self, layer: int, shape: DecoderShape) -> LayerPlanner | None:
        return None if self.schedule.resolve(shape.layers, 1.0)[layer] is None else TextPlanner()


class EarlyExit(Method):
    """All vision rows leave at ``layer`` for good: the depth baseline of VideoLLM-MoD, and VTW (arXiv 2405.05803).

    Attributes:
        layer: the first layer without vision rows.
    """

    paper: ClassVar[str] = "VTW, arXiv 2405.05803"
    skips: ClassVar[str] = "everything, for all vision rows, from one layer on"

    name: Literal["early_exit"] = "early_exit"
    layer: int = Field(16, ge=1)

    def planner(self, layer: int, shape: DecoderShape) -> LayerPlanner | None:
        return TextPlanner() if layer >= self.layer else None


class TextPlanner(LayerPlanner):
    skips_vision = True

    def forward(self, rows: RowMap, hidden: Tensor) -> LayerPlan:
        return LayerPlan.of(rows.text)
