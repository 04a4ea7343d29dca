"""The contract of a method: a strict configuration that makes one planner per decoder layer."""

from typing import ClassVar, Literal

from torch import Tensor, nn

from vtskip.config import StrictModel
from vtskip.plan import DecoderShape, LayerPlan, RowMap


class LayerPlanner(nn.Module):
    """Plans one layer. Subclasses hold what the decision needs (a router, a keep ratio) and implement ``forward``."""

    sees: Literal["stream", "normed"] = "stream"
    every_step: bool = False
    compact: bool = False
    skips_vision: bool = False
    needs: frozenset[str] = frozenset()

    def forward(self, rows: RowMap, hidden: Tensor) -> LayerPlan:
        raise NotImplementedError


class Method(StrictModel):
    """Base of all methods. The same object comes from Python, a dict, or a YAML file.

    ``published`` is the cost that the paper states, with the setting it holds for.
    """

    paper: ClassVar[str] = ""
    trained: ClassVar[bool] = False
    skips: ClassVar[str] = ""
    published: ClassVar[str] = ""

    name: str

    def planner(self, layer: int, shape: DecoderShape) -> LayerPlanner | None:
        """The planner of ``layer``, or None where the method leaves the layer as it is."""
        raise NotImplementedError

    def planners(self, shape: DecoderShape) -> list[LayerPlanner | None]:
        """One planner or None for every layer; to be overridden by methods whose layers share a router."""
        return [self.planner(i, shape) for i in range(shape.layers)]
