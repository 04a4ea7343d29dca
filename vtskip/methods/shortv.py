"""ShortV (arXiv 2504.00502): vision rows stay frozen in the layers that hardly change them."""

from typing import ClassVar, Literal

from torch import Tensor

from vtskip.methods.base import LayerPlanner, Method
from vtskip.plan import DecoderShape, LayerPlan, RowMap
from vtskip.schedules import check_layers


class ShortV(Method):
    """In the listed layers vision rows issue no query and run no FFN; text still reads their K/V.

    Training-free. Saves prefill work; the KV cache is that of the dense model.

    Attributes:
        layers: the frozen layers, counted from 0.
    """

    paper: ClassVar[str] = "ShortV, arXiv 2504.00502"
    skips: ClassVar[str] = "queries and FFN of all vision rows in the listed layers"
    published: ClassVar[str] = "FLOPs 55.2 / 54.7 % (LLaVA-1.5 7B / 13B), 50.5 / 50.2 % (NeXT); KV 100 %"

    name: Literal["shortv"] = "shortv"
    layers: list[int]

    def planner(self, layer: int, shape: DecoderShape) -> LayerPlanner | None:
        check_layers(self.layers, shape.layers)
        return ShortVPlanner() if layer in self.layers else None


class ShortVPlanner(LayerPlanner):
    def forward(self, rows: RowMap, hidden: Tensor) -> LayerPlan:
        return LayerPlan(attend=rows.text, expose=rows.everything, ffn=rows.text, cache=rows.everything)
