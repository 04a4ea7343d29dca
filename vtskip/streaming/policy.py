"""Speak or stay silent: the one rule that the live session and the evaluation share."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtskip.errors import ConfigError


@dataclass(frozen=True)
class Decision:
    """Outcome for one frame: probability of the interval token, whether the argmax is another one, and the verdict."""

    p_interval: float
    argmax_speak: bool
    speak: bool


def check_threshold(threshold: float) -> float:
    """The threshold itself. Raises ConfigError outside [0, 1]."""
    if not 0.0 <= threshold <= 1.0:
        raise ConfigError(f"threshold {threshold}: accepted is a probability in [0, 1]; higher speaks more often")
    return threshold


def decide(logits: Tensor, interval_id: int, threshold: float) -> list[Decision]:
    """speak <=> P(interval) < threshold or argmax != interval, per row of ``logits`` [R, V] (VideoLLM-online's rule).

    Written as a boolean: zeroing the probability and taking the argmax again would call token 0 a reply opener.
    """
    probability = interval_probability(logits, interval_id)
    others = (logits.argmax(-1) != interval_id).tolist()
    return [Decision(p, a, a or p < threshold) for p, a in zip(probability, others)]


def interval_probability(logits: Tensor, interval_id: int) -> list[float]:
    """P(interval) per row of ``logits`` [R, V], in float32 or better."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide.softmax(-1)[:, interval_id].tolist()
