"""p-MoD (arXiv 2412.04449): progressive ratio decay, TanhNorm and STRing."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtskip.config import StrictModel
from vtskip.methods.base import LayerPlanner, Method
from vtskip.plan import DecoderShape, LayerPlan, RowMap
from vtskip.routers import Router, topk_per_group
from vtskip.schedules import Schedule, ShiftedCosine


class WeightNorm(StrictModel):
    """``w = scale * kind(logit) + bias``; ``softmax`` runs over the sample's vision rows.

    The defaults are TanhNorm, ``1 + 0.2 tanh(logit)``. Names of the release: ``tanh_0.2_1``, ``sigmoid_1_0``; a bare
    name there means scale 1 and bias 1.
    """

    kind: Literal["tanh", "sigmoid", "softmax", "none"] = "tanh"
    scale: float = 0.2
    bias: float = 1.0

    def weights(self, logits: Tensor, vision: Tensor) -> Tensor:
        """``[B, S]`` weights of ``[B, S]`` logits; rows outside ``vision`` take no part and hold no meaning."""
        if self.kind == "softmax":
            logits = logits.masked_fill(~vision, torch.finfo(logits.dtype).min).softmax(1)
        elif self.kind != "none":
            logits = logits.tanh() if self.kind == "tanh" else logits.sigmoid()
        return self.scale * logits + self.bias


class PMod(Method):
    """Routers that keep ever fewer vision rows with depth, ranked over all images of a sample.

    A routed layer keeps the ``trunc(keep * n)`` rows with the highest logits. Kept rows weigh their FFN by ``w``, skipped
    rows leave as ``w x`` (STRing), so that the router learns from both; it starts at zero, where every ``w`` is 1.
    Ranking is by fp32 logits with ties to the earlier row (the release ranks weights in the model's dtype).
    Selection is over the whole sample and so not causal: use ``mod`` for streams.

    Attributes:
        schedule: keep per layer; progressive ratio decay on L - 1 by default.
        weight: how logits become weights. string: weigh skipped rows as well.
    """

    paper: ClassVar[str] = "p-MoD, arXiv 2412.04449"
    trained: ClassVar[bool] = True
    skips: ClassVar[str] = "attention, FFN and KV of low-scored rows, more of them with depth"
    published: ClassVar[str] = "TFLOPs 8.38 to 4.92 (LLaVA-1.5-7B), 39.46 to 21.94 (NeXT-7B); KV 53.8 %"

    name: Literal["pmod"] = "pmod"
    schedule: Schedule = ShiftedCosine()
    weight: WeightNorm = WeightNorm()
    string: bool = True

    def planner(self, layer: int, shape: DecoderShape) -> LayerPlanner | None:
        keep = self.schedule.resolve(shape.layers, 1.0)[layer]
        return None if keep is None else PModPlanner(self, keep, Router(shape.hidden, std=0.0))


class PModPlanner(LayerPlanner):
    def __init__(self, method: PMod, keep: float, router: Router):
        super().__init__()
        self.keep, self.weight, self.string, self.router = keep, method.weight, method.string, router
        self.weighs = "output" if method.string else None

    def forward(self, rows: RowMap, hidden: Tensor) -> LayerPlan:
        logits, sample = self.router(hidden), rows.by_sample
        kept = topk_per_group(logits, sample, self.keep, "trunc")
        weight = self.weight.weights(logits, rows.vision)
        plan = LayerPlan.of(rows.text_and(kept, sample.kept_counts(self.keep, "trunc")))
        plan.gain_ffn = torch.where(rows.vision, weight, 1.0)
        if self.string:
            plan.gain_row = torch.where(rows.vision & ~kept, weight, 1.0)
            plan.gain_skipped = True
        return plan
