"""Compositional hold-outs: combinations that training never shows although it shows each part, and known ceilings.

A hold-out names its rule; a clip's ``Rules`` say which side of it the clip is on. As steps are drawn by a known chain, what can
be got right without seeing, or by seeing all, is found by enumeration of its transitions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from vtskip.data.synthetic.draw import Tone
from vtskip.data.synthetic.grammar import COLOURS, SHAPES, VERBS, Action, actions
from vtskip.errors import ConfigError, nearest

_VERB = {verb: number for number, verb in enumerate(VERBS)}
_NOUN = {f"{c} {s}": number for number, (c, s) in enumerate(product(COLOURS, SHAPES))}
Held = Callable[[Action, Action | None, Tone | None], bool]  # action, the one before it, tone of the table


def _pair(action: Action, previous: Action | None, tone: Tone | None) -> bool:
    """A verb with a noun."""
    return (_VERB[action.verb] + _NOUN[action.noun]) % 4 == 0


def _order(action: Action, previous: Action | None, tone: Tone | None) -> bool:
    """A verb right after another one."""
    return previous is not None and (_VERB[action.verb] - _VERB[previous.verb]) % 3 == 1


def _look(action: Action, previous: Action | None, tone: Tone | None) -> bool:
    """A colour on a shape."""
    return (action.colour, action.shape) in (("red", "box"), ("blue", "cup"))


def _background(action: Action, previous: Action | None, tone: Tone | None) -> bool:
    """A verb on a dark or a light table."""
    return tone is not None and _VERB[action.verb] % 3 == (0 if tone == "dark" else 1)


HOLDOUTS: dict[str, Held] = {"pairs": _pair, "orders": _order, "looks": _look, "backgrounds": _background}


@dataclass(frozen=True)
class Rules:
    """Which steps a clip may have: with ``unseen`` only what the hold-out keeps from training, else all but that."""

    holdout: str | None = None
    unseen: bool = False

    def __post_init__(self) -> None:
        if self.holdout is not None and self.holdout not in HOLDOUTS:
            hint = f"{nearest(self.holdout, HOLDOUTS)}; accepted: {', '.join(HOLDOUTS)}"
            raise ConfigError(f"unknown hold-out {self.holdout!r}{hint}")

    def tone(self, seed: tuple[int, ...]) -> Tone | None:
        """The table's tone where it matters, from a random stream of its own."""
        if self.holdout != "backgrounds":
            return None
        return "dark" if np.random.default_rng((*seed, 4)).random() < 0.5 else "light"

    def allows(self, action: Action, previous: Action | None, tone: Tone | None) -> bool:
        """Whether ``action`` may follow ``previous`` (None: it is the first). No step repeats the one before it."""
        if action == previous:
            return False
        if self.holdout is None or (self.holdout == "orders" and previous is None):
            return True
        return HOLDOUTS[self.holdout](action, previous, tone) == self.unseen


@dataclass(frozen=True)
class Ceilings:
    """Expected accuracies of the best guess. ``step``: what is done now; ``next``: what is done next.

    ``blind_*`` sees nothing. ``prior_next`` has the step before perfectly recognised, which is all there is to know: it is
    the ceiling of the next-step task. ``blind_verb`` and ``blind_noun`` guess one word of a step. An oracle gets ``step``
    right always.
    """

    blind_step: float
    blind_verb: float
    blind_noun: float
    blind_next: float
    prior_next: float
    oracle_step: float = 1.0


def transitions(rules: Rules, tone: Tone | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of the first step ``[A]`` and of the step after each ``[A, A]``, over ``actions()`` in their order."""
    every = actions()

    def row(previous: Action | None) -> np.ndarray:
        allowed = np.array([rules.allows(a, previous, tone) for a in every], float)
        return allowed / allowed.sum()

    return row(None), np.stack([row(a) for a in every])


def ceilings(rules: Rules, steps: int = 6) -> Ceilings:
    """Best guesses over clips of ``steps`` steps; with tones the guess does not know which one it is, a prior does."""
    tones: Sequence[Tone | None] = ("dark", "light") if rules.holdout == "backgrounds" else (None,)
    now, then, prior = np.zeros(len(actions())), np.zeros(len(actions())), 0.0
    for tone in tones:
        start, move = transitions(rules, tone)
        at = start
        for place in range(steps):
            now += at / (steps * len(tones))
            if place + 1 < steps:
                prior += float(at @ move.max(axis=1)) / ((steps - 1) * len(tones))
                at = at @ move
                then += at / ((steps - 1) * len(tones))
    shares = [(a, float(p)) for a, p in zip(actions(), now, strict=True)]
    verb = max(sum(p for a, p in shares if a.verb == word) for word in _VERB)
    noun = max(sum(p for a, p in shares if a.noun == word) for word in _NOUN)
    return Ceilings(float(now.max()), verb, noun, float(then.max()), prior)
