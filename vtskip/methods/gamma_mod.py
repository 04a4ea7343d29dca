"""gamma-MoD (arXiv 2410.13859): one two-logit router for all layers, taught by a loss which rows it was right to keep."""

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vtskip.methods.base import LayerPlanner, Method
from vtskip.plan import ON_HOST, DecoderShape, LayerPlan, RowMap, RowSet
from vtskip.routers import Router, topk_per_group
from vtskip.schedules import Constant, Keep, Schedule


class GammaMod(Method):
    """A router shared by the routed layers keeps the best half of a sample's vision rows in each of them.

    The router sees ``n1(x)``; ``p = softmax(logits)[1]`` of its two logits. Kept rows leave as ``h + p FFN(n2 h)`` with
    ``h = x + Attn``, skipped rows as they came. Each routed layer adds the mean cross entropy of its logits against what it
    kept to the loss. In training the ``ceil(keep * n)`` best of n rows are kept, ranked by fp32 logits.

    The defaults mend what the release is known for: text rows run whole and unscaled, positions are those of the sequence,
    and inference keeps as many rows as training did. The published form is ``text: routed``, ``positions: compact``,
    ``inference: threshold`` (and ``decode_threshold: 0.5`` for the LLaVA-HR port; the Mini-Gemini port decodes densely). It
    keeps whatever has ``p > threshold`` at inference: nearly every row of an untrained router, and of a trained one a
    number that differs from the ``keep`` it was trained with.
    Ranking is over the whole sample and so not causal; a threshold judges each row alone. Counts are known on the host
    except under a threshold, where a row's own value alone decides: one synchronisation per routed layer.

    Attributes:
        keep: fraction of the routable rows kept; 0.66 is the release's "0.34", which names the skipped share.
        schedule: the routed layers, all but the first three and the last by default.
        shared: one router for all layers, else one each. FSDP2 needs ``false``: it splits layers one by one.
        text: ``dense``: the routable rows are the vision rows. ``routed``: all rows up to a sample's last vision row, and
            under a threshold every row; each row's FFN is weighed, protected rows too.
        inference: ``topk`` as in training, or ``threshold`` on p.
        decode_threshold: later steps without vision rows run only rows with p of at least this; None runs all of them.
        positions: ``compact`` numbers the rows of each layer anew, 0, 1, 2, ... (no M-RoPE).
        aux_weight: of the auxiliary loss, summed over layers. Mean over the vision rows, or with ``text: routed`` over all
            rows (the release counts padding too).
        init: bounds of the uniform initial weights, LLaVA-HR's (``kaiming``) or Mini-Gemini's (``xavier``); seed: theirs.
    """

    paper: ClassVar[str] = "gamma-MoD, arXiv 2410.13859"
    trained: ClassVar[bool] = True
    skips: ClassVar[str] = "attention, FFN and KV of low-scored rows, by one router for all layers"
    published: ClassVar[str] = "TFLOPs 19.2 to 12.6 / 9.3 at 37.9 / 57.7 % of the rows skipped (LLaVA-HR-7B)"

    name: Literal["gamma_mod"] = "gamma_mod"
    keep: Keep = 0.5
    schedule: Schedule = Constant(first=3, stop=-1)
    shared: bool = True
    text: Literal["dense", "routed"] = "dense"
    inference: Literal["topk", "threshold"] = "topk"
    threshold: float = Field(0.005, ge=0, lt=1)
    decode_threshold: float | None = Field(None, ge=0, le=1)
    positions: Literal["keep", "compact"] = "keep"
    aux_weight: float = Field(0.01, ge=0)
    init: Literal["kaiming", "xavier"] = "kaiming"
    seed: int = 0

    def router(self, layer: int, hidden: int) -> Router:
        router = Router(hidden, std=0.0, outputs=2, bias=False)
        bound = hidden**-0.5 if self.init == "kaiming" else (6 / (hidden + 2)) ** 0.5
        with torch.no_grad():
            router.weight.uniform_(-bound, bound, generator=torch.Generator().manual_seed(self.seed + layer))
        return router

    def planners(self, shape: DecoderShape) -> list[LayerPlanner | None]:
        planners: list[GammaPlanner | None] = []
        owner = None
        for i, keep in enumerate(self.schedule.resolve(shape.layers, self.keep)):
            planner = None
            if keep is not None:
                router = None if owner else self.router(0 if self.shared else i, shape.hidden)
                planner = GammaPlanner(self, keep, router, owner)
                owner = planner if self.shared and owner is None else owner
            planners.append(planner)
        return list(planners)


class GammaPlanner(LayerPlanner):
    """One layer. It asks the router of its ``owner``, itself or the first routed layer, in which shared parameters lie."""

    sees = "normed"

    def __init__(self, method: GammaMod, keep: float, router: Router | None, owner: "GammaPlanner | None"):
        super().__init__()
        self.keep, self.router, self.aux_weight = keep, router, method.aux_weight
        self.owner = (owner or self,)  # in a tuple, so that it is no child of this module
        self.routed, self.by_threshold = method.text == "routed", method.inference == "threshold"
        self.threshold, self.decode_threshold = method.threshold, method.decode_threshold
        self.compact = method.positions == "compact"
        self.every_step = self.routed or self.compact or self.decode_threshold is not None

    def forward(self, rows: RowMap, hidden: Tensor) -> LayerPlan:
        logits = self.logits(hidden)
        score = logits[..., 1] - logits[..., 0]
        p = score.sigmoid()
        kept = self.kept(rows, score.detach(), p.detach())
        plan = LayerPlan.of(kept)
        if self.routed:
            plan.gain_ffn = p
        elif rows.has_vision or torch.is_grad_enabled():  # a batch without images has to reach the router too
            plan.gain_ffn = torch.where(rows.vision, p, 1.0)
        if self.aux_weight and torch.is_grad_enabled():
            judged = rows.valid if self.routed else rows.vision
            loss = cross_entropy(logits.transpose(1, 2), kept.mask.long(), reduction="none")
            plan.aux = self.aux_weight * torch.where(judged, loss, 0).sum() / judged.sum().clamp(min=1)
        return plan

    def logits(self, hidden: Tensor) -> Tensor:
        """``[B, S, 2]``: what speaks for skipping a row, and for keeping it."""
        router: nn.Module = self.owner[0].router
        device = next(router.parameters()).device  # of the layer it lies in
        return router(hidden.to(device)).to(hidden.device)

    def kept(self, rows: RowMap, score: Tensor, p: Tensor) -> RowSet:
        if rows.has_vision:
            return self.above(rows, p) if self.by_threshold and not self.training else self.best(rows, score)
        judges_text = self.decode_threshold is not None or (self.routed and self.by_threshold)
        return self.above(rows, p) if judges_text and not self.training else rows.everything

    def best(self, rows: RowMap, score: Tensor) -> RowSet:
        """The best of a sample's routable rows, and every other row."""
        routable = prefix(rows) if self.routed else rows.by_sample
        kept = topk_per_group(score, routable, self.keep)
        skipped = [sum(n) - k for n, k in zip(routable.sizes, routable.kept_counts(self.keep))]
        counts = [n - s for n, s in zip(rows.everything.counts, skipped)]
        return RowSet(kept | (rows.valid & (routable.group < 0)), counts)

    def above(self, rows: RowMap, p: Tensor) -> RowSet:
        """Rows over the threshold; on steps without vision rows those of a sequence begun before have one of their own."""
        mask = p > self.threshold if self.by_threshold else torch.ones_like(rows.valid)
        if not self.routed:
            mask = mask | rows.text.mask
        if not rows.has_vision:
            begun = rows.position[:, -1:] + 1 > rows.valid.sum(1, keepdim=True)
            mask = torch.where(begun, p >= (self.decode_threshold or 0.0), mask)
        mask = mask & rows.valid
        return RowSet(mask, mask.sum(1).tolist())


def prefix(rows: RowMap) -> RowMap:
    """The rows of each sample up to its last vision row as one group; found once per forward."""
    if "prefix" not in rows.memo:
        place = torch.arange(1, rows.vision.shape[1] + 1, device=rows.vision.device)
        inside = rows.valid & (place <= (rows.vision * place).amax(1, keepdim=True))
        rows.memo["prefix"] = rows.one_group(inside, prefix_counts(rows, inside))
    return rows.memo["prefix"]


def prefix_counts(rows: RowMap, inside: Tensor) -> list[int]:
    """How many rows each prefix has; read from the device only where other methods have chosen the rows before."""
    if ON_HOST not in rows.memo:
        return inside.sum(1).tolist()
    vision, valid = rows.memo[ON_HOST]
    behind = np.flip(np.logical_or.accumulate(np.flip(vision, 1), 1), 1)  # a vision row comes here or later
    return (valid & behind).sum(1).tolist()
