"""Which layers to freeze: ShortV's Layer Contribution (arXiv 2504.00502)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vtskip.errors import ModelError
from vtskip.methods.shortv import ShortV
from vtskip.models.families import decoder_of
from vtskip.runtime.attach import attach

Direction = Literal["altered", "original"]


@dataclass(frozen=True)
class LayerContribution:
    """``scores`` ``[samples, layers]``; ``mean`` over the samples; ``order``: layers from the least to the most needed."""

    scores: Tensor

    @property
    def mean(self) -> Tensor:
        return self.scores.mean(0)

    @property
    def order(self) -> list[int]:
        return self.mean.argsort(stable=True).tolist()

    def layers(self, count: int) -> list[int]:
        """The ``count`` layers that change the answer least, ascending: ``ShortV(layers=...)``."""
        if not 0 <= count <= self.scores.shape[1]:
            raise ModelError(f"{count} layers of {self.scores.shape[1]}: accepted are 0 to {self.scores.shape[1]}")
        return sorted(self.order[:count])


@torch.no_grad()
def layer_contribution(
    model: nn.Module,
    samples: Iterable[Mapping[str, Any]],
    direction: Direction = "altered",
    vision: Callable[[Mapping[str, Any]], Tensor] | None = None,
    progress: Callable[[int], None] | None = None,
) -> LayerContribution:
    """Run each sample once as it is and once per layer with vision rows frozen in that layer alone.

    A layer's score is the divergence of the next-token distribution at the last prompt row, ``KL(altered || original)``
    as released; ``direction="original"`` gives the paper's ``KL(original || altered)``.

    Args:
        model: a supported model without a method attached, put in eval mode.
        samples: forward arguments of one prompt each (batch 1, no padding). Use training prompts: the release calibrates
            on test images.
        vision: gives the ``[1, S]`` mask of vision rows of a sample, for models and inputs that do not tell.
        progress: called with 1 after every forward.

    Raises:
        ModelError: a batch of more than one prompt, or no samples.
    """
    model.eval()
    layers = len(decoder_of(model)[0].layers)
    scores = []
    for sample in samples:
        plain = _log_probabilities(model, sample, None, vision)
        row = []
        for i in range(layers):
            altered = _log_probabilities(model, sample, i, vision)
            p, q = (altered, plain) if direction == "altered" else (plain, altered)
            row.append((p.exp() * (p - q)).sum())
            if progress:
                progress(1)
        scores.append(torch.stack(row))
    if not scores:
        raise ModelError("calibration needs at least one sample")
    return LayerContribution(torch.stack(scores).cpu())


def _log_probabilities(model: nn.Module, sample: Mapping[str, Any], frozen: int | None, vision: Any) -> Tensor:
    """Next-token log-probabilities ``[vocab]`` of one prompt, with vision rows frozen in one layer or in none."""
    method = ShortV(layers=[] if frozen is None else [frozen])
    with attach(model, method) as handle, handle.rows(vision(sample)) if vision else nullcontext():
        logits = model(**sample, use_cache=False, logits_to_keep=1).logits
    if logits.shape[0] != 1:
        raise ModelError(f"calibration takes one prompt at a time, got a batch of {logits.shape[0]}")
    return logits[0, -1].float().log_softmax(-1)
