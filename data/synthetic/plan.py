"""What happens in a clip, in integer source frames: which things lie where, which step is done when.

A plan is a pure function of (seed, tier, clip number). Verb, colour and shape of every step are drawn independently and
uniformly, so that earlier narrations say nothing about the next one (a step only never repeats the one before it).
"""

from dataclasses import dataclass, field

import numpy as np

from vtskip.data.synthetic.grammar import COLOURS, SHAPES, VERBS, Action

# Places on the table in units of the frame's side; the hand comes from the lower edge.
SLOTS = ((0.24, 0.40), (0.52, 0.30), (0.78, 0.42))
SLIDE = 4  # frames in which a thing slides on to or off the table


@dataclass
class Thing:
    """An object on the table from frame ``born`` (it slides in) to ``gone`` (it has slid out)."""

    colour: str
    shape: str
    slot: int
    x: float
    y: float
    born: int
    gone: int


@dataclass
class Step:
    """One action: the hand sets out at ``approach``, touches at ``contact``, is done at ``end``, is away at ``away``.

    ``thing`` and ``moved`` index the plan's things; ``moved`` (picked-up things only) is the same object where it is put down.
    """

    action: Action
    thing: int
    approach: int
    contact: int
    end: int
    away: int
    moved: int | None = None


@dataclass
class Plan:
    """One clip of ``frames`` source frames. ``fidgets`` are (start, end) of hand movements that touch nothing."""

    uid: str
    seed: tuple[int, ...]
    frames: int
    things: list[Thing] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    fidgets: list[tuple[int, int]] = field(default_factory=list)


class _Table:
    """The things on the table while a plan is written: at most two, so that one of the three slots is free."""

    def __init__(self, plan: Plan, rng: np.random.Generator) -> None:
        self.plan, self.rng = plan, rng
        self.on: list[int] = []

    def add(self, colour: str, shape: str, born: int) -> int:
        free = [s for s in range(len(SLOTS)) if s not in {self.plan.things[i].slot for i in self.on}]
        slot = int(self.rng.choice(free))
        x, y = (float(v + self.rng.uniform(-0.025, 0.025)) for v in SLOTS[slot])
        self.plan.things.append(Thing(colour, shape, slot, x, y, born, self.plan.frames + SLIDE))
        self.on.append(len(self.plan.things) - 1)
        return self.on[-1]

    def remove(self, index: int, frame: int) -> None:
        self.plan.things[index].gone = frame
        self.on.remove(index)

    def find(self, action: Action) -> int | None:
        return next((i for i in self.on if self._noun(i) == (action.colour, action.shape)), None)

    def _noun(self, index: int) -> tuple[str, str]:
        return self.plan.things[index].colour, self.plan.things[index].shape


def _draw(rng: np.random.Generator, previous: Action | None) -> Action:
    while True:
        verb, colour, shape = (str(rng.choice(list(words))) for words in (VERBS, COLOURS, SHAPES))
        action = Action(verb, colour, shape)
        if action != previous:
            return action


def make_plan(uid: str, seed: tuple[int, ...], seconds: tuple[float, float], fps: int = 10) -> Plan:
    """Draw a clip whose length lies between ``seconds``; gaps between steps vary from about half a second to two."""
    rng = np.random.default_rng(seed)
    plan = Plan(uid, seed, int(rng.integers(round(seconds[0] * fps), round(seconds[1] * fps) + 1)))
    table = _Table(plan, rng)
    now, previous = 0, None
    while True:
        action = _draw(rng, previous)
        gap, approach, hold, retreat = (int(rng.integers(*span)) for span in ((6, 20), (5, 8), (8, 12), (4, 7)))
        contact = now + gap + approach
        if contact + hold + retreat >= plan.frames:
            return plan
        target = table.find(action)
        if target is None:
            while len(table.on) > 1:
                table.remove(table.on[0], now + SLIDE)
            target = table.add(action.colour, action.shape, now if plan.steps else -SLIDE)
        if not plan.steps:
            colour = str(rng.choice([c for c in COLOURS if c != action.colour]))
            table.add(colour, str(rng.choice(list(SHAPES))), -SLIDE)
        elif gap > 14 and rng.random() < 0.3:
            plan.fidgets.append((now + SLIDE, now + gap))
        step = Step(action, target, contact - approach, contact, contact + hold, contact + hold + retreat)
        if action.verb == "pick":
            table.remove(target, step.end)
            step.moved = table.add(action.colour, action.shape, step.end)
        plan.steps.append(step)
        now, previous = step.away, action
