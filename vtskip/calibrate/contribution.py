"""ShortV's Layer Contribution (arXiv 2504.00502): how much the answer changes when one layer leaves vision rows alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vtskip.calibrate.scores import LayerScores, evaluating, one_prompt
from vtskip.errors import ModelError
from vtskip.methods import LayerPlanner, Method
from vtskip.methods.shortv import ShortV
from vtskip.models.families import decoder_of, unwrap
from vtskip.plan import DecoderShape, LayerPlan, RowMap
from vtskip.runtime.attach import Handle, attach

Direction = Literal["altered", "original"]
VisionOf = Callable[[Mapping[str, Any]], Tensor]


class LayerContribution(LayerScores):
    """``layers(count)`` are those that change the answer least: ``ShortV(layers=...)``."""


def layer_contribution(
    model: nn.Module,
    samples: Iterable[Mapping[str, Any]],
    direction: Direction = "altered",
    vision: VisionOf | None = None,
    progress: Callable[[int], None] | None = None,
) -> LayerContribution:
    """Run each sample once as it is and once per layer with vision rows frozen in that layer alone.

    A layer's score is the divergence of the next-token distribution at the last prompt row, ``KL(altered || original)``
    as released; ``direction="original"`` gives the paper's ``KL(original || altered)``.

    Args:
        model: a supported model without a method attached; it is left as it was.
        samples: forward arguments of one prompt each (batch 1, no padding). Use training prompts: the release calibrates
            on test images.
        vision: gives the ``[1, S]`` mask of vision rows of a sample, for models and inputs that do not tell.
        progress: called with 1 for every layer of every sample.

    Raises:
        ModelError: no samples, a batch of more than one prompt, padding, or a prompt without vision rows.
    """
    rows = list(contributions(model, samples, direction, vision, progress))
    if not rows:
        raise ModelError("calibration needs at least one sample")
    return LayerContribution(torch.stack(rows))


def contributions(
    model: nn.Module,
    samples: Iterable[Mapping[str, Any]],
    direction: Direction = "altered",
    vision: VisionOf | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Tensor]:
    """The scores ``[layers]`` of one sample after the other; see ``layer_contribution``."""
    layers = decoder_of(unwrap(model))[0].layers
    with evaluating(model), attach(model, _OneLayer()) as handle:  # once: which layer is frozen is a switch
        for sample in samples:
            one_prompt(sample)
            plain = _log_probabilities(handle, sample, vision)
            if handle.last_rows is None:
                raise ModelError("a calibration prompt has no vision rows: every layer would score 0")
            scores = []
            for layer in layers:
                layer.vtskip.frozen = True
                altered = _log_probabilities(handle, sample, vision)
                layer.vtskip.frozen = False
                p, q = (altered, plain) if direction == "altered" else (plain, altered)
                scores.append((p.exp() * (p - q)).sum().float())
                if progress:
                    progress(1)
            handle.reset()
            yield torch.stack(scores).cpu()


@torch.no_grad()
def _log_probabilities(handle: Handle, sample: Mapping[str, Any], vision: VisionOf | None) -> Tensor:
    """Next-token log-probabilities ``[vocab]`` at the last row of one prompt, in fp64: a rounded sum could be negative."""
    with handle.rows(vision(sample)) if vision else nullcontext():
        logits = handle.model(**sample, use_cache=False, logits_to_keep=1).logits
    return logits[0, -1].double().log_softmax(-1)


class _OneLayer(Method):
    """ShortV in whichever layer has its switch on."""

    name: Literal["layer_contribution"] = "layer_contribution"

    def planner(self, layer: int, shape: DecoderShape) -> LayerPlanner:
        return _Switch(ShortV(layers=[layer]).planner(layer, shape))


class _Switch(LayerPlanner):
    frozen = False

    def __init__(self, planner: LayerPlanner | None):
        super().__init__()
        assert planner is not None
        self.shortv = planner

    def forward(self, rows: RowMap, hidden: Tensor) -> LayerPlan:
        return self.shortv(rows, hidden) if self.frozen else LayerPlan.of(rows.everything)
