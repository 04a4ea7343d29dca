"""The contract of a method: a strict configuration that makes one planner per decoder layer."""

from typing import ClassVar, Literal

from torch import Tensor, nn

from vtskip.config import StrictModel
from vtskip.plan import DecoderShape, LayerPlan, Propagation, RowMap


class LayerPlanner(nn.Module):
    """Plans one layer. Subclasses hold what the decision needs (a router, a keep ratio) and implement ``forward``.

    Attributes that only a composition with other methods reads (:mod:`vtskip.methods.compose`):
        drops: rows it leaves out are gone for good. It plans all later layers, ranks rows outside ``rows.memo[LIVE]`` last,
            and gives back the same ``RowSet`` object as long as it drops nothing more.
        leaves: for methods behind it in the same layer: ``rows`` that run, all text among them; ``parts``, as all rows run,
            but not all of the layer; or ``none``, as no vision row runs.
        weighs: the ``gain_on`` of its row gain, None without one. score: the ``score`` of its plans.
    """

    sees: Literal["stream", "normed", "both"] = "stream"
    every_step: bool = False
    compact: bool = False
    skips_vision: bool = False
    needs: frozenset[str] = frozenset()
    drops: bool = False
    leaves: Literal["rows", "parts", "none"] = "rows"
    weighs: Literal["output", "delta"] | None = None
    score: bool | Propagation = False

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
