"""What happens in a clip of the full grammar: a task, one of its ways, and its acts in integer source frames.

As in ``plan``, all of it is a pure function of seed, tier and clip number. Half of the clips are *hard*: their things lie under
grey covers, and what each of them is shows only on a card of two patch cells (its colour, its shape) during the step's first
act, in one or two frames at 2 fps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from vtskip.data.synthetic.draw import Tone
from vtskip.data.synthetic.grammar import COLOURS
from vtskip.data.synthetic.holdout import Rules
from vtskip.data.synthetic.plan import ANY, FRONT, SHELF, SLIDE, Cue, Plan, put
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
GROUPS = ({"fill", "stir", "wipe"}, {"screw", "tap"}, {"press", "light"}, {"cut"})
T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """A step and the acts it is made of, by their first and last index in the plan."""

    step: Step
    colour: str
    first: int
    last: int
    optional: bool


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


def colours_of(step: Step, rules: Rules) -> list[str]:
    """The colours that the thing of a step may have. Held out is one of four per verb and shape, or per shape."""
    groups = [k for k, group in enumerate(GROUPS) if group & set(step.verbs)]
    if rules.holdout == "looks":
        groups = [0]
    elif rules.holdout != "pairs" or not groups:
        return list(COLOURS)
    held = {c for k, c in enumerate(COLOURS) if (k + SHAPES.index(step.shape) + groups[0]) % 4 == 0}
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
        now = _do(rng, plan, step, now, gap, moments, colours_of(step, rules))
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
    colours: Sequence[str],
) -> int:
    """Add one step after a gap; the frame at which the hand is away."""
    actions = step.actions(str(rng.choice(list(colours))))
    colour, number, first = actions[0].colour, len(plan.things), len(plan.steps)
    if plan.things and plan.steps[-1].action.verb != "pick":
        plan.things[-1].gone = now + SLIDE
    thing = put(rng, *(COVER if plan.hard else (colour, step.shape)), FRONT, 0.04)
    at = now + gap
    for action, (rest, approach, hold, retreat) in zip(actions, moments, strict=True):
        contact = at + rest + approach
        plan.steps.append(Act(action, number, at + rest, contact, contact + hold, contact + hold + retreat))
        at = plan.steps[-1].away
    start = plan.steps[first]
    thing.born = start.contact if start.action.verb == "place" else now if first else -SLIDE
    thing.gone = at if actions[-1].verb == "pick" else plan.frames + SLIDE
    plan.things.append(thing)
    if plan.hard:
        card = CARDS[int(rng.integers(len(CARDS)))]
        plan.cards.append(Cue(colour, step.shape, start.contact, start.end, card))
    plan.parts.append(Part(step, colour, first, len(plan.steps) - 1, TASKS[plan.task].optional(step)))
    return at
