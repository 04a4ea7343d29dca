"""Mixture-of-Depths for vision tokens, as in VideoLLM-MoD (arXiv 2408.16730)."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from vtskip.methods.base import LayerPlanner, Method
from vtskip.plan import DecoderShape, LayerPlan, RowMap
from vtskip.routers import AlwaysKeep, Router, favour, gumbel_noise, topk_per_group
from vtskip.schedules import Interleaved, Keep, Schedule


class Mod(Method):
    """Per-frame top-k routers: the best rows of each frame run through a routed layer, the others pass it by.

    A routed layer scores each vision row of its input, ``s = sigmoid(w x + b)``, and keeps the ``ceil(keep * F)`` best
    of every frame of F rows; skipped rows expose no K/V there. Kept rows leave as ``s * Layer(x)``.

    Attributes:
        keep: fraction of each frame's rows that a routed layer keeps.
        schedule: the routed layers; the paper's interleaved layers 1, 3, 5, ... by default.
        combine: ``output`` weighs the whole layer output (the released code, default), ``delta`` only the layer's own
            contribution, ``x + s (Layer(x) - x)`` (the textbook form), ``none`` leaves it unweighted: the router then
            gets no gradient. A pre-norm layer reads ``s * y`` as it reads ``y``, so that ``output`` tells a router little
            of what later layers find in a row (docs/routing.md).
        always_keep: give the ``first`` row of each frame (CLS) or the ``last`` one (which predicts speak or stay silent)
            a place of its own among the kept; the count does not change.
        explore: scale of Gumbel noise on the logits that are ranked in training: 1 draws rows without replacement from
            softmax(logits) (arXiv 1903.06059), 0 (the release, default) always takes the best. Without it a row whose kind
            ranks low is never run, so that nothing says what it would have been good for. Evaluation takes the best.
        seed: of the routers' initial weights.
    """

    paper: ClassVar[str] = "VideoLLM-MoD, arXiv 2408.16730"
    trained: ClassVar[bool] = True
    skips: ClassVar[str] = "attention, FFN and KV of low-scored rows, per frame, in every other layer"
    published: ClassVar[str] = "0.60 x FLOPs and KV of the vision rows, 1.67 x context (10 per frame, keep 0.2)"

    name: Literal["mod"] = "mod"
    keep: Keep = 0.2
    schedule: Schedule = Interleaved()
    combine: Literal["output", "delta", "none"] = "output"
    always_keep: AlwaysKeep = "none"
    explore: float = Field(0.0, ge=0.0)
    seed: int = 0

    def planner(self, layer: int, shape: DecoderShape) -> LayerPlanner | None:
        keep = self.schedule.resolve(shape.layers, self.keep)[layer]
        if keep is None:
            return None
        return ModPlanner(self, keep, Router(shape.hidden, seed=self.seed + layer), self.seed * 1000 + layer)


class ModPlanner(LayerPlanner):
    def __init__(self, method: Mod, keep: float, router: Router, seed: int = 0):
        super().__init__()
        self.keep, self.combine, self.always_keep = keep, method.combine, method.always_keep
        self.explore, self.seed = method.explore, seed
        self.router, self.weighs = router, None if method.combine == "none" else method.combine

    def forward(self, rows: RowMap, hidden: Tensor) -> LayerPlan:
        logits = self.router(hidden)
        score = logits
        if self.training and self.explore:
            score = logits + self.explore * gumbel_noise(rows.position, self.seed)
        kept = topk_per_group(favour(score, rows, self.always_keep), rows, self.keep)
        plan = LayerPlan.of(rows.text_and(kept, rows.kept_sizes(self.keep)))
        if self.combine != "none":
            plan.gain_row = torch.where(rows.vision, logits.sigmoid(), 1.0)
            plan.gain_on = self.combine
        return plan
