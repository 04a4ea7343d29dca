"""MindSkip of Router-Tuning (arXiv 2410.13184): gates that let whole sequences, or single rows, pass attention by."""

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from vtskip.methods.base import LayerPlanner, Method
from vtskip.plan import CARRIED, DecoderShape, LayerPlan, RowMap, RowSet
from vtskip.routers import Router
from vtskip.schedules import Keep, check_layers


class MindSkip(Method):
    """A gated layer runs its attention, or leaves it out; its FFN runs for every row.

    ``sequence``: one gate per sample and layer, ``g = 1[sigmoid(w mean_t n1(x_t)) >= 0.5]``, where ``g = 0`` computes no
    attention and stores no K/V. The mean is over the rows that are not padding (the release includes padding, so that a
    sample's gate depends on its batch). The decision falls when a sequence begins and is kept with its cache: later chunks
    and every decode step reuse that of the first chunk, so a prompt in two chunks may be gated by its beginning alone.
    Documents packed into one row share one gate.
    ``row``: one gate per row. A skipped row issues no query; its K/V stay visible, and each row decides alone, so that
    chunks, decoding and recomputation agree.

    A text method: text-only inputs are gated too. Gates start open (zero router). Their gradient is straight-through and
    only open gates get one from the model's loss, as in the release; the newer release computes all rows and masks them.
    How many gates are open is known on the device alone: one host synchronisation per gated layer.

    Attributes:
        layers: the gated layers; None is the ``count`` layers before the last.
        text: ``dense`` gates only vision rows (``granularity: row``).
        gradient_scale: weight of the auxiliary loss, the mean of each layer's gates; 0 as published, which leaves it out.
        target: what the mean of the gates may reach without a loss, ``relu(mean(g) - target)``; None is 0.
        std, seed: of the routers' initial weights.
    """

    paper: ClassVar[str] = "Router-Tuning, arXiv 2410.13184"
    trained: ClassVar[bool] = True
    skips: ClassVar[str] = "attention and KV of whole sequences, or queries of single rows, where a gate is closed"
    published: ClassVar[str] = "1.21 x speed at 69.4 of 69.7 points (Llama-3-8B, attention of 16 layers)"

    name: Literal["mindskip"] = "mindskip"
    granularity: Literal["sequence", "row"] = "sequence"
    layers: list[int] | None = None
    count: int = Field(16, ge=1)
    text: Literal["routed", "dense"] = "routed"
    gradient_scale: float = Field(0.0, ge=0)
    target: Keep | None = None
    std: float = Field(0.0, ge=0)
    seed: int = 0

    @model_validator(mode="after")
    def _fits(self) -> "MindSkip":
        if self.text == "dense" and self.granularity == "sequence":
            raise ValueError("text 'dense' needs granularity 'row': a sequence is gated as a whole")
        return self

    def planner(self, layer: int, shape: DecoderShape) -> LayerPlanner | None:
        last = shape.layers - 1
        layers = list(range(max(last - self.count, 0), last)) if self.layers is None else self.layers
        check_layers(layers, shape.layers)
        if layer not in layers:
            return None
        router = Router(shape.hidden, std=self.std, seed=self.seed + layer, bias=False)
        return SequencePlanner(self, layer, router) if self.granularity == "sequence" else RowPlanner(self, router)


class SequencePlanner(LayerPlanner):
    sees, leaves = "normed", "parts"
    every_step = True

    def __init__(self, method: MindSkip, index: int, router: Router):
        super().__init__()
        self.index, self.router = index, router
        self.scale, self.target = method.gradient_scale, method.target

    def forward(self, rows: RowMap, hidden: Tensor) -> LayerPlan:
        carried = rows.memo.get((CARRIED, self.index))
        gate = self.gate(rows, hidden) if carried is None else carried.float()  # [B]
        everything, runs = rows.everything, gate.detach() > 0
        on, host = everything, runs.tolist()
        if not all(host):
            on = RowSet(rows.valid & runs[:, None], [n * r for n, r in zip(everything.counts, host)])
        plan = LayerPlan(attend=on, expose=on, ffn=everything, cache=on, carry=runs)
        if torch.is_grad_enabled() and carried is None:
            plan.gain_attn = gate[:, None].expand(rows.valid.shape)
            plan.aux = penalty(gate.mean(), self.scale, self.target)
        return plan

    def gate(self, rows: RowMap, hidden: Tensor) -> Tensor:
        valid = rows.valid[..., None]
        total = torch.where(valid, hidden, 0).sum(1, dtype=torch.promote_types(hidden.dtype, torch.float32))
        return straight_through(self.router(total / valid.sum(1).clamp(min=1)).sigmoid())


class RowPlanner(LayerPlanner):
    sees, leaves = "normed", "parts"

    def __init__(self, method: MindSkip, router: Router):
        super().__init__()
        self.router, self.every_step = router, method.text == "routed"
        self.scale, self.target = method.gradient_scale, method.target

    def forward(self, rows: RowMap, hidden: Tensor) -> LayerPlan:
        judged = rows.valid if self.every_step else rows.vision
        gate = torch.where(judged, straight_through(self.router(hidden).sigmoid()), 1.0)  # [B, S]
        everything, mask = rows.everything, rows.valid & (gate > 0)
        on = RowSet(mask, mask.sum(1).tolist())
        if on.counts == everything.counts and not torch.is_grad_enabled():  # training takes the same way on every rank
            on = everything
        plan = LayerPlan(on, everything, everything, everything)
        if torch.is_grad_enabled():
            plan.gain_attn = gate
            mean = torch.where(judged, gate, 0).sum() / judged.sum().clamp(min=1)
            plan.aux = penalty(mean, self.scale, self.target)
        return plan


def straight_through(score: Tensor) -> Tensor:
    """1 where ``score`` is at least 0.5, else 0; the gradient passes to the score unchanged."""
    return (score >= 0.5).to(score.dtype) + (score - score.detach())


def penalty(mean: Tensor, scale: float, target: float | None) -> Tensor:
    """The auxiliary loss. At scale 0 still a zero that depends on the router, so that every rank has its gradient."""
    return scale * (mean if target is None else (mean - target).relu())
