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
        joined: K and V of the vision rows come from one product for each run of consecutive frozen layers. The numbers are
            the same to rounding. It holds a second copy of the K and V weights of these layers, of which only changes that
            PyTorch's version counters see are noticed (not those through ``.data``); where one of them trains, they are
            joined at each forward. On a CPU it is no faster; not under ``torch.compile`` or gradient checkpointing, nor with
            LoRA, quantised or sharded projections, which run layer by layer.
    """

    paper: ClassVar[str] = "ShortV, arXiv 2504.00502"
    skips: ClassVar[str] = "queries and FFN of all vision rows in the listed layers"
    published: ClassVar[str] = "FLOPs 55.2 / 54.7 % (LLaVA-1.5 7B / 13B), 50.5 / 50.2 % (NeXT); KV 100 %"

    name: Literal["shortv"] = "shortv"
    layers: list[int]
    joined: bool = False

    def planner(self, layer: int, shape: DecoderShape) -> LayerPlanner | None:
        check_layers(self.layers, shape.layers)
        return ShortVPlanner(self.joined) if layer in self.layers else None


class ShortVPlanner(LayerPlanner):
    leaves = "none"

    def __init__(self, joined: bool = False):
        super().__init__()
        self.joined = joined  # consecutive layers may make K and V of the rows outside the text in one go

    def forward(self, rows: RowMap, hidden: Tensor) -> LayerPlan:
        return LayerPlan(attend=rows.text, expose=rows.everything, ffn=rows.text, cache=rows.everything)
