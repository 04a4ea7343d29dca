"""What happens in a clip, in integer source frames: which things lie where, which step is done when.

A plan is a pure function of (seed, tier, clip number). Verb, colour and shape of every step are drawn independently and
uniformly, so that earlier narrations say nothing about the next one (a step only never repeats the one before it).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import ceil
from typing import Any, Self, TypeVar

import numpy as np

from vtskip.data.synthetic.draw import Tone
from vtskip.data.synthetic.grammar import COLOURS, SHAPES, VERBS, Action
from vtskip.data.synthetic.holdout import Rules

# In units of the frame's side. Work is done in front of the camera; things on the shelf at the back only look on.
FRONT, SHELF = (0.5, 0.46), ((0.17, 0.10), (0.50, 0.08), (0.83, 0.10))
SLIDE = 4  # frames in which a thing slides on to or off the table, at its left or right edge
APPROACH, HOLD, RETREAT = (3, 6), (7, 11), (3, 6)  # frames, upper ends excluded
DRAWN = Fraction(10)  # frames per second that plans are drawn at, and that constants in frames refer to
ANY = Rules()
GAP, LONGEST_GAP, MEAN_WAIT = 5, 30, 8  # frames


@dataclass
class Thing:
    """An object in front from frame ``born`` (it slides in from side -1 or 1) to ``gone`` (it has left); ``scale``: its size."""

    colour: str
    shape: str
    x: float
    y: float
    born: int = 0
    gone: int = 0
    side: int = 1
    scale: float = 1.0


@dataclass
class Step:
    """One action: the hand sets out at ``approach``, touches at ``contact``, is done at ``end``, is away at ``away``.

    ``thing`` indexes the plan's things, ``into`` that of the second noun, if there is one.
    """

    action: Action
    thing: int
    approach: int
    contact: int
    end: int
    away: int
    into: int | None = None


Moved = TypeVar("Moved", Thing, Step)


@dataclass(frozen=True)
class Cue:
    """A card that shows what a thing is, from frame ``start`` to ``end``; ``at`` is its centre."""

    colour: str
    shape: str
    start: int
    end: int
    at: tuple[float, float]


@dataclass
class Plan:
    """One clip of ``frames`` source frames, ``rate`` of them per second.

    ``fidgets`` are (start, end) of hand movements that touch nothing. ``tone`` is the table's, ``dark`` or ``light``; None leaves
    it to chance.
    """

    uid: str
    seed: tuple[int, ...]
    frames: int
    shelf: list[Thing] = field(default_factory=list)
    things: list[Thing] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    fidgets: list[tuple[int, int]] = field(default_factory=list)
    tone: Tone | None = None
    rate: Fraction = DRAWN

    @property
    def pace(self) -> float:
        """Frames to one of those the plan was drawn with."""
        return float(self.rate / DRAWN)

    @property
    def slide(self) -> int:
        """``SLIDE`` in this clip's frames."""
        return int(SLIDE * self.rate / DRAWN)

    def frame_of(self, frame: int, rate: Fraction) -> int:
        """The frame in which something shows at another rate: never before its time."""
        return ceil(frame * rate / self.rate)

    def at(self, rate: Fraction) -> Self:
        """The same clip at another frame rate."""

        def moved(value: Moved, *names: str) -> Moved:
            changed: dict[str, Any] = {name: self.frame_of(getattr(value, name), rate) for name in names}
            return replace(value, **changed)

        return replace(
            self,
            rate=rate,
            frames=self.frame_of(self.frames, rate),
            things=[moved(thing, "born", "gone") for thing in self.things],
            steps=[moved(step, "approach", "contact", "end", "away") for step in self.steps],
            fidgets=[(self.frame_of(start, rate), self.frame_of(end, rate)) for start, end in self.fidgets],
        )

    @property
    def cues(self) -> Sequence[Cue]:
        """Cards that are shown; the table's things show themselves."""
        return ()

    def step_at(self, t: int) -> Step | None:
        """The step whose hand is in the picture at frame ``t``."""
        return next((s for s in self.steps if s.approach <= t < s.away), None)


def _draw(rng: np.random.Generator, previous: Action | None, rules: Rules, tone: Tone | None) -> Action:
    while True:
        action = Action(*(str(rng.choice(list(words))) for words in (VERBS, COLOURS, SHAPES)))
        if rules.allows(action, previous, tone):
            return action


def put(rng: np.random.Generator, colour: str, shape: str, at: tuple[float, float], jitter: float) -> Thing:
    """A thing near a spot, which comes and goes on a side drawn at random."""
    x, y = (float(v + rng.uniform(-jitter, jitter)) for v in at)
    return Thing(colour, shape, x, y, side=int(rng.choice([-1, 1])))


def make_plan(uid: str, seed: tuple[int, ...], seconds: tuple[float, float], fps: int = 10, rules: Rules = ANY) -> Plan:
    """Draw a clip whose length lies between ``seconds`` and whose steps ``rules`` allow.

    Idle gaps between steps last 0.5 to 3 s, by an exponential law, so that the time that has passed does not tell when the
    next step comes. The thing that was worked on makes room for the next one, except where the same thing comes next; a
    picked-up thing leaves with the hand.
    """
    rng = np.random.default_rng(seed)
    plan = Plan(uid, seed, int(rng.integers(round(seconds[0] * fps), round(seconds[1] * fps) + 1)))
    plan.tone = rules.tone(seed)
    for spot in SHELF:
        if rng.random() < 0.6:
            plan.shelf.append(put(rng, str(rng.choice(list(COLOURS))), str(rng.choice(list(SHAPES))), spot, 0.03))
    now, previous = 0, None
    while True:
        action = _draw(rng, previous, rules, plan.tone)
        approach, hold, retreat = (int(rng.integers(*span)) for span in (APPROACH, HOLD, RETREAT))
        gap = min(GAP + int(rng.exponential(MEAN_WAIT)), LONGEST_GAP)
        contact = now + gap + approach
        if contact + hold + retreat >= plan.frames:
            return plan
        stays = previous is not None and previous.verb != "pick" and previous.noun == action.noun
        if not stays:
            if previous is not None and previous.verb != "pick":
                plan.things[-1].gone = now + SLIDE
            plan.things.append(put(rng, action.colour, action.shape, FRONT, 0.04))
            plan.things[-1].born = now if plan.steps else -SLIDE
        if gap > 11 and rng.random() < 0.3:
            plan.fidgets.append((now + SLIDE, now + gap))
        step = Step(action, len(plan.things) - 1, contact - approach, contact, contact + hold, contact + hold + retreat)
        plan.things[-1].gone = step.away if action.verb == "pick" else plan.frames + SLIDE
        plan.steps.append(step)
        now, previous = step.away, action
