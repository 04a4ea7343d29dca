"""What both scores share: one number per prompt and layer, the choice of the lowest, and a model left as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vtskip.errors import ConfigError, ModelError


@dataclass(frozen=True)
class LayerScores:
    """``scores`` ``[samples, layers]``; ``mean`` over the samples; ``order``: layers from the lowest score to the highest."""

    scores: Tensor

    @property
    def mean(self) -> Tensor:
        return self.scores.mean(0)

    @property
    def order(self) -> list[int]:
        return self.mean.argsort(stable=True).tolist()

    def layers(
        self, count: int | None = None, *, quantile: float | None = None, threshold: float | None = None
    ) -> list[int]:
        """Layers with the lowest mean scores, ascending by number; give exactly one rule.

        Args:
            count: so many layers.
            quantile: those at or below this quantile of the layers' scores; 0.6 is ShortV's 19 of 32 and 24 of 40.
            threshold: those below this score.

        Raises:
            ConfigError: none or several rules, or a count or quantile that is out of range.
        """
        one_rule(count=count, quantile=quantile, threshold=threshold)
        mean, total = self.mean.double(), self.scores.shape[1]
        if quantile is not None:
            if not 0 <= quantile <= 1:
                raise ConfigError(f"quantile {quantile}: accepted are 0 to 1")
            return (mean <= mean.quantile(quantile)).nonzero()[:, 0].tolist()
        if threshold is not None:
            return (mean < threshold).nonzero()[:, 0].tolist()
        if count is None or not 0 <= count <= total:
            raise ConfigError(f"{count} layers of {total}: accepted are 0 to {total}")
        return sorted(self.order[:count])


def one_rule(**rules: Any) -> None:
    """Raises ConfigError unless exactly one of ``rules`` is given."""
    given = [name for name, value in rules.items() if value is not None]
    if len(given) != 1:
        raise ConfigError(
            f"layers are chosen by exactly one of {', '.join(rules)}; given: {', '.join(given) or 'none'}"
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while; every module gets its own mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def one_prompt(sample: Mapping[str, Any]) -> None:
    """Raises ModelError for a batch or for padding: the last row must be the last row of the prompt."""
    source = next((sample[key] for key in ("input_ids", "inputs_embeds") if sample.get(key) is not None), None)
    if source is not None and source.shape[0] != 1:
        raise ModelError(f"calibration takes one prompt at a time, got a batch of {source.shape[0]}")
    mask = sample.get("attention_mask")
    if mask is not None and mask.dim() == 2 and not bool(mask.all()):
        raise ModelError(f"calibration takes prompts without padding, got {int((mask == 0).sum())} rows of it")
