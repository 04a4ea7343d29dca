"""Speak or stay silent: the one rule that the live session and the evaluation share."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vtskip.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


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


def speaks(p_interval: float, argmax_speak: bool, threshold: float) -> bool:
    """speak <=> P(interval) < threshold or argmax != interval (VideoLLM-online's rule).

    A boolean on purpose: zeroing the probability and taking the argmax again would call token 0 a reply opener.
    """
    return argmax_speak or p_interval < threshold


def decide(logits: "Tensor", interval_id: int, threshold: float) -> list[Decision]:
    """The decision of every row of ``logits`` [R, V], with probabilities in float32 or better."""
    wide = logits.float() if logits.element_size() < 4 else logits
    probability = wide.softmax(-1)[:, interval_id].tolist()
    other = (logits.argmax(-1) != interval_id).tolist()
    return [Decision(p, a, speaks(p, a, threshold)) for p, a in zip(probability, other)]
