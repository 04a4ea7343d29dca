"""What happens in a clip of the full grammar: a task, one of its ways, and its acts in integer source frames.

As in ``plan``, all of it is a pure function of seed, tier and clip number. Half of the clips are *hard*: their things lie under
grey covers, and what each of them is shows only on a card of two patch cells (its colour, its shape) during the step's first
act, in one or two frames at 2 fps; what it goes into shows on another one while it does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Self, TypeVar

import numpy as np

from vtskip.data.synthetic.draw import Tone
from vtskip.data.synthetic.grammar import COLOURS
from vtskip.data.synthetic.holdout import Rules
from vtskip.data.synthetic.plan import ANY, FRONT, SHELF, SLIDE, Cue, Plan, Thing, put
from vtskip.data.synthetic.plan import Step as Act
from vtskip.data.synthetic.render import CELL
from vtskip.data.synthetic.tasks import SHAPES, TASKS, Path, Step, Task
from vtskip.data.synthetic.things import COVER

APPROACH, HOLD, RETREAT, REST = (3, 5), (6, 9), (3, 5), (0, 3)  # frames, upper ends excluded; rest: between two acts
GAP, LONGEST_GAP, MEAN_WAIT = 5, 20, 5  # frames between two steps
HARD = 0.5  # share of hard clips
CARDS = tuple(
    (x * CELL, y * CELL) for x in (1, 6) for y in (4.5, 5.5)
)  # whole cells of the 7 x 7 grid, beside the hand
# Verbs that a hold-out of pairs is about; no step has two of different groups, so that one colour suits all its acts.
GROUPS = ({"fill", "stir", "wipe"}, {"screw", "tap"}, {"press", "light"}, {"cut"}, {"pour", "insert"})
BESIDE, SMALLER = (0.15, 0.32), 0.68  # where the thing lies that another one goes into, and its size
T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """A step and the acts it is made of, by their first and last index in the plan."""

    step: Step
    colour: str
    first: int
    last: int
    optional: bool
    other: str = ""  # colour of what the thing goes into


@dataclass
class TaskPlan(Plan):
    """A clip that does one task."""

    task: str = ""
    hard: bool = False
    parts: list[Part] = field(default_factory=list)
    cards: list[Cue] = field(default_factory=list)

    @property
    def cues(self) -> Sequence[Cue]:
        return self.cards

    def at(self, rate: Fraction) -> Self:
        moved = super().at(rate)
        moved.cards = [
            replace(card, start=self.frame_of(card.start, rate), end=self.frame_of(card.end, rate))
            for card in self.cards
        ]
        return moved


def is_hard(seed: tuple[int, ...]) -> bool:
    """From a random stream of its own."""
    return bool(np.random.default_rng((*seed, 6)).random() < HARD)


def tasks_of(rules: Rules, tone: Tone | None = None) -> dict[str, float]:
    """The tasks that a clip may have, with their probabilities; without a tone, over dark and light tables alike."""
    if rules.holdout == "orders" and rules.unseen:
        chosen = [name for name, task in TASKS.items() if any(block.held for block in task.blocks)]
    elif rules.holdout == "backgrounds":
        if tone is None:
            both = [tasks_of(rules, "dark"), tasks_of(rules, "light")]
            return {name: (both[0].get(name, 0) + both[1].get(name, 0)) / 2 for name in both[0] | both[1]}
        held = {name for number, name in enumerate(TASKS) if number % 3 == (0 if tone == "dark" else 1)}
        chosen = [name for name in TASKS if (name in held) == rules.unseen]
    else:
        chosen = list(TASKS)
    return dict.fromkeys(chosen, 1 / len(chosen))


def paths_of(task: Task, rules: Rules) -> dict[Path, float]:
    """The ways a clip may do a task."""
    return task.paths(rules.unseen if rules.holdout == "orders" else None)


def colours_of(step: Step, rules: Rules, shape: str = "") -> list[str]:
    """The colours that the thing of a step may have, or the thing of another ``shape`` that it goes into.

    Held out is one of four per verb and shape, or per shape.
    """
    groups = [k for k, group in enumerate(GROUPS) if group & set(step.verbs)]
    if rules.holdout == "looks":
        groups = [0]
    elif rules.holdout != "pairs" or not groups:
        return list(COLOURS)
    held = {c for k, c in enumerate(COLOURS) if (k + SHAPES.index(shape or step.shape) + groups[0]) % 4 == 0}
    return [colour for colour in COLOURS if (colour in held) == rules.unseen]


def make_task_plan(
    uid: str, seed: tuple[int, ...], seconds: tuple[float, float], fps: int = 10, rules: Rules = ANY
) -> TaskPlan:
    """Draw a clip of at least ``seconds[0]``; it is longer than ``seconds[1]`` only where its steps need that."""
    rng = np.random.default_rng(seed)
    plan = TaskPlan(uid, seed, 0, tone=rules.tone(seed), hard=is_hard(seed))
    for spot in SHELF:
        if rng.random() < 0.6:
            plan.shelf.append(put(rng, str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES)), spot, 0.03))
    plan.task = _pick(rng, tasks_of(rules, plan.tone))
    path = _pick(rng, paths_of(TASKS[plan.task], rules))
    acts = [[_moments(rng) for _ in step.verbs] for step in path]
    work = sum(sum(moments) for step in acts for moments in step)
    low, high = (round(limit * fps) for limit in seconds)
    gaps = _gaps(rng, len(path), work, low, high)
    plan.frames = work + sum(gaps)
    now = 0
    for step, gap, moments in zip(path, gaps, acts, strict=False):
        if gap > 11 and rng.random() < 0.3:
            plan.fidgets.append((now + SLIDE, now + gap))
        now = _do(rng, plan, step, now, gap, moments, rules)
    return plan


def _pick(rng: np.random.Generator, chances: dict[T, float]) -> T:
    return list(chances)[int(rng.choice(len(chances), p=list(chances.values())))]


def _moments(rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Frames of rest, approach, hold and retreat."""
    rest, approach, hold, retreat = (int(rng.integers(*span)) for span in (REST, APPROACH, HOLD, RETREAT))
    return rest, approach, hold, retreat


def _gaps(rng: np.random.Generator, steps: int, work: int, low: int, high: int) -> list[int]:
    """Idle frames before each step and after the last: 0.5 to 2 s, less where the clip would be too long; a short clip
    waits at its ends."""
    gaps = [min(GAP + int(rng.exponential(MEAN_WAIT)), LONGEST_GAP) for _ in range(steps + 1)]
    while work + sum(gaps) > high and max(gaps) > GAP:
        gaps[int(np.argmax(gaps))] -= 1
    spare = low - work - sum(gaps)
    if spare > 0:
        lead = int(rng.integers(spare + 1))
        gaps[0] += lead
        gaps[-1] += spare - lead + int(rng.integers(10))
    return gaps


def _do(
    rng: np.random.Generator,
    plan: TaskPlan,
    step: Step,
    now: int,
    gap: int,
    moments: Sequence[tuple[int, int, int, int]],
    rules: Rules,
) -> int:
    """Add one step after a gap; the frame at which the hand is away."""
    colour = str(rng.choice(colours_of(step, rules)))
    other = str(rng.choice(colours_of(step, rules, step.into))) if step.into else ""
    actions, number, first = step.actions(colour, other), len(plan.things), len(plan.steps)
    for thing in plan.things:
        if thing.gone > now:  # what is still there makes room
            thing.gone = now + SLIDE
    plan.things.append(put(rng, *(COVER if plan.hard else (colour, step.shape)), FRONT, 0.04))
    if step.into:
        plan.things.append(put(rng, *(COVER if plan.hard else (other, step.into)), BESIDE, 0.02))
        plan.things[-1].side, plan.things[-1].scale = -1, SMALLER
    at = now + gap
    for action, (rest, approach, hold, retreat) in zip(actions, moments, strict=True):
        contact = at + rest + approach
        moves, into = (
            (at + rest, contact, contact + hold, contact + hold + retreat),
            number + 1 if action.into else None,
        )
        plan.steps.append(Act(action, number, *moves, into))
        at = plan.steps[-1].away
    _stay(plan, plan.things[number:], plan.steps[first:], now if first else -SLIDE)
    if plan.hard:
        plan.cards.append(_card(rng, colour, step.shape, plan.steps[first]))
        plan.cards += [_card(rng, other, step.into, act) for act in plan.steps[first:] if act.into is not None]
    plan.parts.append(Part(step, colour, first, len(plan.steps) - 1, TASKS[plan.task].optional(step), other))
    return at


def _stay(plan: TaskPlan, things: Sequence[Thing], acts: Sequence[Act], born: int) -> None:
    """From when and until when a step's things are there; what comes next may make them leave earlier."""
    for thing in things:
        thing.born, thing.gone = born, plan.frames + SLIDE
    first, last = acts[0], acts[-1]
    if first.action.verb == "place":  # it comes with the hand
        things[0].born = first.contact
    if last.action.verb in ("pick", "insert"):  # it leaves with the hand, or lies in the other thing
        things[0].gone = last.away if last.action.verb == "pick" else last.end


def _card(rng: np.random.Generator, colour: str, shape: str, act: Act) -> Cue:
    return Cue(colour, shape, act.contact, act.end, CARDS[int(rng.integers(len(CARDS)))])
