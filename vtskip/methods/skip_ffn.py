"""Skip-FFN, the layer rule of Skip-Vision (arXiv 2503.21817)."""

from typing import ClassVar, Literal

from torch import Tensor

from vtskip.methods.base import LayerPlanner, Method
from vtskip.plan import DecoderShape, LayerPlan, RowMap, RowSet
from vtskip.routers import evenly_per_group
from vtskip.schedules import Constant, Keep, Schedule


class SkipFFN(Method):
    """Vision rows that are not retained run attention but no FFN, and may leave the KV cache after prefill.

    Attributes:
        keep: fraction of each image's or frame's rows that is retained (evenly spaced), when ``retained`` is not given.
        retained: offsets of the retained rows inside each group, e.g. those with the highest CLS attention.
        schedule: the layers; all by default, as published.
        drop_kv: remove the K/V of rows that are not retained once this forward has read them (the published KV removal).
            Later rows then see less than the prompt did, so cached decoding differs from recomputation by design.
    """

    paper: ClassVar[str] = "Skip-Vision, arXiv 2503.21817"
    trained: ClassVar[bool] = True
    skips: ClassVar[str] = "FFN (and, with drop_kv, KV) of vision rows that are not retained"
    published: ClassVar[str] = "FLOPs 25 to 60 % with the merge before the LLM (Llama-3-8B)"

    name: Literal["skip_ffn"] = "skip_ffn"
    keep: Keep = 0.2
    retained: list[int] | None = None
    schedule: Schedule = Constant()
    drop_kv: bool = False

    def planner(self, layer: int, shape: DecoderShape) -> LayerPlanner | None:
        keep = self.schedule.resolve(shape.layers, self.keep)[layer]
        return None if keep is None else SkipFFNPlanner(self, keep)


class SkipFFNPlanner(LayerPlanner):
    leaves = "parts"

    def __init__(self, method: SkipFFN, keep: float):
        super().__init__()
        self.keep, self.retained, self.drop_kv = keep, method.retained, method.drop_kv

    def forward(self, rows: RowMap, hidden: Tensor) -> LayerPlan:
        ffn = self.retained_rows(rows)
        everything = rows.everything
        return LayerPlan(attend=everything, expose=everything, ffn=ffn, cache=ffn if self.drop_kv else everything)

    def retained_rows(self, rows: RowMap) -> RowSet:
        """Text and retained rows; the same object for every layer that keeps the same."""
        key = ("skip_ffn", self.keep, tuple(self.retained or ()))
        if key not in rows.memo:
            if self.retained is None:
                kept, counts = evenly_per_group(rows, self.keep), rows.kept_sizes(self.keep)
            else:
                offsets = rows.offset.new_tensor(self.retained)
                kept = rows.vision & (rows.offset[..., None] == offsets).any(-1)
                counts = [[sum(o < size for o in set(self.retained)) for size in row] for row in rows.sizes]
            rows.memo[key] = rows.text_and(kept, counts)
        return rows.memo[key]
