"""Known ceilings of anticipation (the actions after those in view) and of narration, as ``bayes`` has them for questions.

For anticipation clips follow each other without end, each drawn on its own, and every action is as likely the last one in view;
a set's files end, so that theirs differ a little. The best guess sees each action, where a thing made room for another and where
the next clip began, and names the most likely verb, noun and action for every place ahead. It is the best for accuracy by
place; by edit distance there may be better ones, and there is none worse: it is at most the share of places that are wrong.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vtskip.data.lta import AHEAD, SEEN
from vtskip.data.synthetic.draw import Tone
from vtskip.data.synthetic.grammar import ALL_VERBS, COLOURS, INTO, VERBS
from vtskip.data.synthetic.holdout import Rules, transitions
from vtskip.data.synthetic.task_plan import colours_of, paths_of, tasks_of
from vtskip.data.synthetic.tasks import SHAPES, TASKS, Step

Label = tuple[str, str, str, str]  # verb, colour, shape, second noun
Known = tuple[float, float]  # share right: of who sees all that is shown, of who sees nothing


@dataclass(frozen=True)
class _Act:
    """The ``place``-th act of a step, the ``number``-th of its path."""

    step: Step
    place: int
    number: int

    @property
    def verb(self) -> str:
        return self.step.verbs[self.place]

    def labels(self, rules: Rules, colour: str = "") -> dict[Label, float]:
        """What may be said of it; ``colour``: that of its thing, where it is known."""
        verb, step = self.verb, self.step
        colours = [colour] if colour else colours_of(step, rules)
        others = [f"{o} {step.into}" for o in colours_of(step, rules, step.into)] if verb in INTO else [""]
        return {(verb, c, step.shape, o): 1 / len(colours) / len(others) for c in colours for o in others}


def _paths(rules: Rules) -> Iterator[tuple[float, list[_Act]]]:
    """Every clip that may be drawn, with its probability."""
    for name, chance in tasks_of(rules).items():
        for path, part in paths_of(TASKS[name], rules).items():
            every = [(number, step, place) for number, step in enumerate(path) for place in range(len(step.verbs))]
            yield chance * part, [_Act(step, place, number) for number, step, place in every]


def narration(rules: Rules) -> Known:
    """Whole narrations of the full grammar: who sees has all right, who does not has only the narrations before.

    Narrations do not say where a step ends: the guess knows the words so far and the colour of the thing named last.
    """
    masses: dict[Hashable, dict[Label, float]] = defaultdict(lambda: defaultdict(float))
    for chance, acts in _paths(rules):
        for at, act in enumerate(acts):
            told = tuple((a.verb, a.step.shape, a.step.into * (a.verb in INTO)) for a in acts[:at])
            colours = colours_of(acts[at - 1].step, rules) if at else [""]
            same = at > 0 and acts[at - 1].number == act.number
            for colour in colours:
                for label, mass in act.labels(rules, colour if same else "").items():
                    masses[told, colour][label] += chance * mass / len(colours)
    total = sum(sum(labels.values()) for labels in masses.values())
    return 1.0, sum(max(labels.values()) for labels in masses.values()) / total


def table_narration(rules: Rules, steps: int = 6) -> Known:
    """Of the free grammar, over clips of ``steps`` steps: any act that may follow the one before."""
    tones: tuple[Tone | None, ...] = ("dark", "light") if rules.holdout == "backgrounds" else (None,)
    chains = [transitions(rules, tone) for tone in tones]
    blind = 0.0
    for at in range(steps):
        if not at:
            blind += float(np.mean([start for start, _ in chains], axis=0).max())
            continue
        now = [start @ np.linalg.matrix_power(move, at - 1) for start, move in chains]
        blind += float(np.mean([n[:, None] * move for n, (_, move) in zip(now, chains)], axis=0).max(axis=1).sum())
    return 1.0, blind / steps


# ------------------------------------------------------------------------------------------------------------ anticipation


@dataclass(frozen=True)
class _Stream:
    """Clips of the full grammar end to end."""

    rules: Rules
    seen: int
    ahead: int

    @cached_property
    def paths(self) -> list[tuple[float, list[_Act]]]:
        return list(_paths(self.rules))

    def masses(self, act: _Act, colour: str = "") -> np.ndarray:
        found = np.zeros((len(ALL_VERBS), len(COLOURS) * len(SHAPES)))
        for (verb, c, shape, _), mass in act.labels(self.rules, colour).items():
            found[list(ALL_VERBS).index(verb), list(COLOURS).index(c) * len(SHAPES) + SHAPES.index(shape)] += mass
        return found

    @cached_property
    def fresh(self) -> list[np.ndarray]:
        """What the first, second, ... act of a clip and of those after it may be."""
        known = [(chance, [self.masses(act) for act in acts]) for chance, acts in self.paths]
        found: list[np.ndarray] = []
        for at in range(self.ahead):
            parts = (chance * (acts[at] if at < len(acts) else found[at - len(acts)]) for chance, acts in known)
            found.append(sum(parts, np.zeros_like(known[0][1][0])))
        return found

    def cases(self) -> dict[Hashable, np.ndarray]:
        """What is in view -> what may follow, weighed by how often it is in view."""
        found: dict[Hashable, np.ndarray] = {}
        for chance, acts in self.paths:
            blank = [self.masses(act) for act in acts]
            for at, now in enumerate(acts):
                view = acts[max(0, at + 1 - self.seen) : at + 1]
                own = tuple((a.verb, a.step.shape, a.step.into, a.place == 0) for a in view[1:])
                first = view[0]
                start = (
                    first.verb,
                    first.step.shape,
                    first.step.into,
                    at < self.seen,
                )  # its step may have begun before
                colours = colours_of(now.step, self.rules)
                for colour in colours:
                    after = [
                        self.masses(a, colour) if a.number == now.number else blank[at + 1 + k]
                        for k, a in enumerate(acts[at + 1 : at + 1 + self.ahead])
                    ]
                    after += self.fresh[: self.ahead - len(after)]
                    key = (start, own, colour)
                    found[key] = found.get(key, 0.0) + np.stack(after) * (chance / len(colours))
        return found


def anticipation(rules: Rules, seen: int = SEEN, ahead: int = AHEAD) -> dict[str, Known]:
    """Of the full grammar: ``verb``, ``noun`` and ``action``, the mean over the places ahead."""
    return _shares(list(_Stream(rules, seen, ahead).cases().values()))


def table_anticipation(rules: Rules, seen: int = SEEN, ahead: int = AHEAD, steps: int = 6) -> dict[str, Known]:
    """Of the free grammar, in clips of ``steps`` steps, of which ``seen`` is more: the place in the clip is in view."""
    tones: tuple[Tone | None, ...] = ("dark", "light") if rules.holdout == "backgrounds" else (None,)
    chains = [transitions(rules, tone) for tone in tones]
    ways = [[start @ np.linalg.matrix_power(move, at) for at in range(steps)] for start, move in chains]
    fresh, cases = np.mean(ways, axis=0), []
    for (_, move), way in zip(chains, ways):
        powers = [np.linalg.matrix_power(move, k) for k in range(steps)]
        for at in range(steps):
            rest = [fresh[k % steps] for k in range(max(0, ahead - (steps - 1 - at)))]
            for now, chance in enumerate(way[at]):
                after = [power[now] for power in powers[1 : min(steps - at, ahead + 1)]] + rest
                cases.append(np.stack(after).reshape(ahead, len(VERBS), -1) * chance)
    return _shares(cases)


def _shares(cases: list[np.ndarray]) -> dict[str, Known]:
    """Right of all, by the best guess for each case and by one for all. Cases ``[ahead, verbs, nouns]`` are what may follow."""
    blind = sum(cases[1:], cases[0])
    total = float(blind.sum())
    return {name: (sum(map(view, cases)) / total, view(blind) / total) for name, view in VIEWS.items()}


VIEWS = {  # mass of the most likely label at each place
    "verb": lambda masses: float(masses.sum(axis=2).max(axis=1).sum()),
    "noun": lambda masses: float(masses.sum(axis=1).max(axis=1).sum()),
    "action": lambda masses: float(masses.max(axis=(1, 2)).sum()),
}
