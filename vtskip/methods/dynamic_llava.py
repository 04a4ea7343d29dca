"""Dynamic-LLaVA (arXiv 2412.00876): a predictor drops vision rows for good, another keeps generated rows out of the cache."""

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from vtskip.methods.base import LayerPlanner, Method
from vtskip.plan import ANSWERS, DecoderShape, LayerPlan, RowMap, RowSet
from vtskip.routers import position_noise, topk_per_group
from vtskip.schedules import Keep


class DynamicLlava(Method):
    """From ``layer`` on, an image's ``trunc(keep * n)`` best rows by a learned predictor remain, and generated rows by another.

    *Inference*: the prompt keeps all of its text. Behind it, each row that comes alone (a generated token) runs and reads as
    always, but its K/V enter the cache of ``layer`` and the later layers only where the text predictor says so. Later rows
    then see less than a recomputation would show them, by design.

    *Training*: every row is computed, as in the release: a predicted 0 hides a row's K/V from the other rows, in attention
    weights ``exp(s) D / sum exp(s) D`` with D 0 or 1 and the gradient of a soft choice (Gumbel noise, straight-through). So
    training costs more than a dense model's, and attention with these weights is not a fused kernel. The auxiliary loss is
    ``loss_weight`` times the mean over images of ``(keep - mean D)^2``, and over answers of at least ``min_answer`` rows of
    ``(text_keep - mean D)^2``; shorter answers keep all. The temperature of the choice falls from 1 to 0.1 over a run of
    ``vtskip train``, which sets the planners' ``progress`` (for a Trainer of your own: the callback
    ``vtskip.train.warmup.Progress(model)``).

    Differs from the release: images of a sample are judged one by one (there it has one), so images one by one give the same
    as at once; where D is 0 nothing leaks (there 1e-6 of the weight goes to hidden rows, and to later ones); and the noise is
    a function of a row's place and the step, so that recomputation sees the same. A decoding step waits for the device once,
    to learn which samples store their row; a row stays out of memory where no sample of the batch stores one.

    Attributes:
        keep: of each image's rows. text_keep: of generated rows, a target of the loss alone; null judges images only.
        width, heads, ffn, blocks: of the predictors; seed: of their weights and of the noise.
    """

    paper: ClassVar[str] = "Dynamic-LLaVA, arXiv 2412.00876"
    trained: ClassVar[bool] = True
    skips: ClassVar[str] = "everything, for vision rows that a predictor drops; KV of generated rows by another"
    published: ClassVar[str] = "TFLOPs 10.1 to 2.5 (LLaVA-1.5-7B, its image rows alone; 32.0 % with 64 text rows)"

    name: Literal["dynamic_llava"] = "dynamic_llava"
    keep: Keep = 0.2
    layer: int = Field(2, ge=0)
    text_keep: Keep | None = 0.5
    min_answer: int = Field(50, ge=1)
    loss_weight: float = Field(100.0, ge=0)
    width: int = Field(512, ge=4, multiple_of=4)
    heads: int = Field(8, ge=1)
    ffn: int = Field(2048, ge=1)
    blocks: int = Field(2, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _divides(self) -> "DynamicLlava":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be shared by {self.heads} heads")
        return self

    def planner(self, layer: int, shape: DecoderShape) -> LayerPlanner | None:
        if layer < self.layer:
            return None
        return DynamicPlanner(self, Predictor(self, shape.hidden) if layer == self.layer else None)


class Predictor(nn.Module):
    """Two logits per row, for keeping it and against: of image rows together, or of text rows each by itself."""

    def __init__(self, method: DynamicLlava, hidden: int):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(method.seed)
            self.image = nn.ModuleDict({"into": into(hidden, method.width), "out": out_of(method.width)})
            self.image["blocks"] = nn.ModuleList(
                Block(method.width, method.heads, method.ffn) for _ in range(method.blocks)
            )
            self.text = nn.Sequential(into(hidden, method.width), out_of(method.width)) if method.text_keep else None

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """``[G, n, hidden] -> [G, n, 2]``; ``real`` ``[G, n]``: x are image rows, and some are fillers."""
        if real is None:
            assert self.text is not None
            return self.text(x)
        x, visible = (
            self.image["into"](x),
            real[:, None, None, :] | torch.eye(x.shape[1], dtype=torch.bool).to(x.device),
        )
        for block in self.image["blocks"]:
            x = block(x, visible)
        local, shared = x.chunk(2, dim=-1)
        count = real.sum(1).clamp(min=1)[:, None, None]
        shared = (shared * real[..., None]).sum(1, keepdim=True) / count
        return self.image["out"](torch.cat([local, shared.expand_as(local)], -1))


class Block(nn.Module):
    """A pre-norm transformer block without causality."""

    def __init__(self, width: int, heads: int, ffn: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, ffn), nn.Linear(ffn, width)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v, visible).transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


def into(hidden: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, width), nn.GELU())


def out_of(width: int) -> nn.Sequential:
    half, quarter = width // 2, width // 4
    return nn.Sequential(nn.Linear(width, half), nn.GELU(), nn.Linear(half, quarter), nn.GELU(), nn.Linear(quarter, 2))


class DynamicPlanner(LayerPlanner):
    """``predictor``: in the first of the layers, which decides for all. ``progress``: the share of a training run behind it."""

    drops = True

    def __init__(self, method: DynamicLlava, predictor: Predictor | None):
        super().__init__()
        self.method, self.keep, self.predictor, self.progress = method, method.keep, predictor, 0.0
        self.every_step = method.text_keep is not None
        if predictor is not None and self.every_step:
            self.needs = frozenset({ANSWERS})

    def forward(self, rows: RowMap, hidden: Tensor) -> LayerPlan:
        if self.training and torch.is_grad_enabled():
            return self.soft(rows, hidden)
        if rows.has_vision:
            return LayerPlan.of(self.kept(rows, hidden))
        plan = LayerPlan.of(rows.everything)
        if self.every_step and rows.valid.shape[1] == 1:
            plan.cache = self.stored(rows, hidden)
        return plan

    # ---------------------------------------------------------------- inference

    def kept(self, rows: RowMap, hidden: Tensor) -> RowSet:
        if "dynamic_llava" not in rows.memo:
            assert self.predictor is not None
            table, slot = by_image(rows)
            score = certainty(self.predictor(*taken(hidden, table, self.predictor)))
            score = score.flatten()[slot]
            kept = topk_per_group(score, rows, self.keep, "trunc")
            rows.memo["dynamic_llava"] = rows.text_and(kept, rows.kept_sizes(self.keep, "trunc"))
        return rows.memo["dynamic_llava"]

    def stored(self, rows: RowMap, hidden: Tensor) -> RowSet:
        """Generated rows that stay in the cache; a sequence's first row does. Reads the device."""
        if "dynamic_llava" not in rows.memo:
            assert self.predictor is not None
            keep = (certainty(self.predictor(wide(hidden, self.predictor))) > 0) | (rows.position <= 0)
            mask = rows.valid & keep
            counts = mask.sum(1).tolist()
            rows.memo["dynamic_llava"] = (
                rows.everything if tuple(counts) == rows.everything.counts else RowSet(mask, counts)
            )
        return rows.memo["dynamic_llava"]

    # ---------------------------------------------------------------- training

    def soft(self, rows: RowMap, hidden: Tensor) -> LayerPlan:
        """All rows run, and are seen as far as they are kept. Batches without images take the same way, as every process has
        to call the same modules."""
        plan = LayerPlan.of(rows.everything)
        if self.predictor is not None:
            weight, plan.aux = self.choose(rows, hidden)
            rows.memo["dynamic_llava", "weight"] = weight
        plan.gain_key = rows.memo["dynamic_llava", "weight"]
        return plan

    def choose(self, rows: RowMap, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """D ``[B, S]``, 1 on rows that are not judged, and the auxiliary loss. Calls the same modules on any batch."""
        assert self.predictor is not None
        table, slot = by_image(rows)
        x, real = taken(hidden, table, self.predictor)
        logits = certainty(self.predictor(x, real)).flatten()
        image = self.hard(logits[slot], rows)
        weight = torch.where(rows.vision, image, 1.0)
        drawn = F.pad(image.flatten(), (0, 1))[table]
        aux = off_target(drawn, real, self.keep) + 0 * logits.sum()  # part of the graph without images, too
        if self.every_step:
            text = certainty(self.predictor(wide(hidden, self.predictor)))
            answer = rows.memo.get(ANSWERS, torch.zeros_like(rows.valid)) & rows.text.mask
            answer = answer & (answer.sum(1, keepdim=True) >= self.method.min_answer)
            chosen = self.hard(text, rows)
            weight = torch.where(answer, chosen, weight)
            aux = aux + off_target(chosen, answer, self.method.text_keep or 1.0) + 0 * text.sum()
        return weight, self.method.loss_weight * aux

    def hard(self, logit: Tensor, rows: RowMap) -> Tensor:
        """0 or 1 ``[B, S]``, drawn with the odds of ``logit``; the gradient is that of the soft choice."""
        sample = torch.arange(len(rows.valid), device=rows.valid.device)[:, None] << 32
        u = position_noise(rows.position + sample, self.method.seed + int(self.progress * 2**31))
        u = u.clamp(1e-9, 1 - 1e-9)
        noise = (u.log() - (1 - u).log()).to(logit.dtype)  # the difference of two Gumbel draws
        soft = ((logit + noise) / 0.1**self.progress).sigmoid()
        return (soft > 0.5).to(soft.dtype) + soft - soft.detach()


def by_image(rows: RowMap) -> tuple[Tensor, Tensor]:
    """``[images, most rows]``: the place of each image's rows in the flattened batch, one past the end on fillers; and
    ``[B, S]``: where among them each row lies (text anywhere). At least one image, all filler."""
    images, most = max(1, *map(len, rows.sizes)), max([1, *(n for sizes in rows.sizes for n in sizes)])
    batch, length = rows.vision.shape
    sample = torch.arange(batch, device=rows.vision.device)[:, None]
    slot = ((sample * images + rows.group) * most + rows.offset).masked_fill(~rows.vision, batch * images * most)
    place = torch.arange(batch * length, device=slot.device)
    table = place.new_full((batch * images * most + 1,), batch * length).scatter(0, slot.flatten(), place)
    return table[:-1].view(batch * images, most), slot.clamp(max=batch * images * most - 1)


def taken(hidden: Tensor, table: Tensor, like: Predictor) -> tuple[Tensor, Tensor]:
    """The rows of ``table``, zeros on fillers, and which are none."""
    flat = hidden.flatten(0, 1)
    real = table < len(flat)
    x = wide(flat[table.clamp(max=len(flat) - 1)], like)
    return x.masked_fill(~real[..., None], 0.0), real


def wide(x: Tensor, like: Predictor) -> Tensor:
    """In the predictor's type, which is fp32 or wider."""
    return x.to(next(like.parameters()).dtype)


def certainty(logits: Tensor) -> Tensor:
    """Of keeping a row, as a logit: ranks as its log-probability does, and is positive where it is the likelier."""
    return logits[..., 0] - logits[..., 1]


def off_target(chosen: Tensor, judged: Tensor, target: float) -> Tensor:
    """Mean over the rows of ``judged`` ``[G, n]`` that have any, of the squared distance of their mean to ``target``."""
    count = judged.sum(1)
    mean = torch.where(judged, chosen, 0.0).sum(1) / count.clamp(min=1)
    return torch.where(count > 0, (target - mean).square(), 0.0).sum() / (count > 0).sum().clamp(min=1)
