"""Rows kept by a score that is given from outside: controls that ask what a simple rule, or the truth, would have chosen.

``motion`` scores a row by how much its tower feature changed since the frame before (the rule of TimeChat-Online's
differential token dropping, arXiv 2504.17343, in its feature mode), at the counts of the method it is compared with.
``oracle`` keeps the rows of areas that are known to tell what is done, ``anti_oracle`` all others first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vtskip.methods.base import LayerPlanner, Method
from vtskip.plan import DecoderShape, LayerPlan, RowMap
from vtskip.routers import AlwaysKeep, favour, topk_per_group
from vtskip.schedules import Keep, Schedule


class Guided(Method):
    """Per frame the ``keep`` rows of the highest given score, in the layers of ``schedule``. ``seed``: of what fills up.

    ``always_keep``: the row that has a place of its own, as in ``mod``.
    """

    name: Literal["guided"] = "guided"
    by: Literal["motion", "oracle", "anti_oracle"] = "motion"
    keep: Keep
    schedule: Schedule
    always_keep: AlwaysKeep = "none"
    seed: int = 0

    def planner(self, layer: int, shape: DecoderShape) -> LayerPlanner | None:
        keep = self.schedule.resolve(shape.layers, self.keep)[layer]
        return None if keep is None else GuidedPlanner(keep, self.always_keep)


class GuidedPlanner(LayerPlanner):
    """``given``: scores ``[frames, rows]`` of each question of a batch, whose beams have the same ones."""

    def __init__(self, keep: float, always_keep: AlwaysKeep = "none"):
        super().__init__()
        self.keep, self.always_keep = keep, always_keep
        self.given: Sequence[Tensor] = ()

    def forward(self, rows: RowMap, hidden: Tensor) -> LayerPlan:
        score = hidden.new_zeros(rows.vision.shape, dtype=torch.float32)
        if self.given:
            beams = len(rows.sizes) // len(self.given)
            score[rows.vision] = torch.cat([own.flatten().to(score) for own in self.given for _ in range(beams)])
        kept = topk_per_group(favour(score, rows, self.always_keep), rows, self.keep)
        return LayerPlan.of(rows.text_and(kept, rows.kept_counts(self.keep)))


def guide(model: Any, scores: Sequence[Tensor | None]) -> None:
    """Give all guided planners of ``model`` the scores ``[frames, rows]`` of the frames of each question that come next."""
    given = [torch.zeros(0) if own is None else own for own in scores]
    for module in model.modules():
        if isinstance(module, GuidedPlanner):
            module.given = given


def motion(features: Tensor) -> Tensor:
    """``[N, rows]``: one less the cosine of each row with the same row one frame before; 0 in the first frame."""
    if len(features) < 2:
        return features.new_zeros(features.shape[:2], dtype=torch.float32)
    change = 1 - F.cosine_similarity(features[1:].float(), features[:-1].float(), dim=-1)
    return torch.cat([torch.zeros_like(change[:1]), change])


@dataclass(frozen=True)
class Seen:
    """Features ``[N, F, D]`` of frames and, for guided rows, their scores ``[N, F]``. Sliced along the frames."""

    features: Tensor
    scores: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, part: Any) -> "Seen":
        return Seen(self.features[part], None if self.scores is None else self.scores[part])
