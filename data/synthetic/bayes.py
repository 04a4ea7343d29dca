"""Known ceilings: what the best guess gets right on each question, with everything before it perfectly recognised and without
seeing anything.

The grammar is known and small, so this is enumeration: over all ways of all tasks, or over the free chain of the table. Scores
are those of the COIN questions, pooled over a test split (``eval``'s strict denominators); ``bayes_ahead`` has the others.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vtskip.data.coin import HORIZON
from vtskip.data.files import read_json
from vtskip.data.lta import AHEAD, SEEN
from vtskip.data.synthetic import bayes_ahead
from vtskip.data.synthetic.draw import Tone
from vtskip.data.synthetic.holdout import Rules, ceilings, transitions
from vtskip.data.synthetic.task_plan import paths_of, tasks_of
from vtskip.data.synthetic.tasks import TASKS, Step
from vtskip.errors import DataError


@dataclass(frozen=True)
class Known:
    """Shares of right answers: ``best`` recognises what is shown without fault, ``blind`` sees nothing but the question."""

    best: float
    blind: float


@dataclass(frozen=True)
class _Case:
    """One word of one answer, with its weight: ``ahead`` steps after ``now``, of ``asked`` in all."""

    weight: float
    task: str
    now: Step
    asked: int
    ahead: int
    answer: Step


def _cases(rules: Rules, horizon: int) -> Iterator[_Case]:
    for name, chance in tasks_of(rules).items():
        for path, part in paths_of(TASKS[name], rules).items():
            for at, now in enumerate(path[:-1]):
                coming = path[at + 1 : at + 1 + horizon]
                for ahead, answer in enumerate(coming):
                    yield _Case(chance * part, name, now, len(coming), ahead, answer)


def _guess(rules: Rules, horizon: int, known: Callable[[_Case], Hashable]) -> float:
    """Share right of the most frequent answer for each thing that may be known."""
    weights: dict[tuple[Hashable, int], dict[Step, float]] = defaultdict(lambda: defaultdict(float))
    for case in _cases(rules, horizon):
        weights[known(case), case.ahead][case.answer] += case.weight
    total = sum(sum(answers.values()) for answers in weights.values())
    return sum(max(answers.values()) for answers in weights.values()) / total


def _shown(rules: Rules) -> tuple[Known, Known]:
    """Of the questions what is done in a step, and what is done in a whole video."""
    steps: dict[Step, float] = defaultdict(float)
    told: dict[tuple[Step, ...], dict[str, float]] = defaultdict(dict)
    tasks = tasks_of(rules)
    for name, chance in tasks.items():
        for path, part in paths_of(TASKS[name], rules).items():
            told[path][name] = chance * part
            for step in path:
                steps[step] += chance * part
    best = sum(max(shares.values()) for shares in told.values())
    return Known(1.0, max(steps.values()) / sum(steps.values())), Known(best, max(tasks.values()))


def task_ceilings(rules: Rules) -> dict[str, Known]:
    """Of the full grammar, by the names of the COIN questions.

    A question shows one segment: "best" of ``next`` and ``procedure`` knows its step and how many are asked for,
    ``procedure_goal`` the goal too.
    """
    step, task = _shown(rules)
    return {
        "step": step,
        "next": Known(_guess(rules, 1, lambda c: c.now), _guess(rules, 1, lambda c: None)),
        "task": task,
        "procedure": Known(
            _guess(rules, HORIZON, lambda c: (c.now, c.asked)), _guess(rules, HORIZON, lambda c: c.asked)
        ),
        "procedure_goal": Known(
            _guess(rules, HORIZON, lambda c: (c.now, c.asked, c.task)),
            _guess(rules, HORIZON, lambda c: (c.asked, c.task)),
        ),
    }


def table_ceilings(rules: Rules, steps: int = 6) -> dict[str, Known]:
    """Of the free grammar, over clips of ``steps`` steps. There is one goal, which tells nothing."""
    held = ceilings(rules, steps)
    tones: Sequence[Tone | None] = ("dark", "light") if rules.holdout == "backgrounds" else (None,)
    best = blind = total = 0.0
    for tone in tones:
        start, move = transitions(rules, tone)
        for at in range(steps - 1):
            now = start @ np.linalg.matrix_power(move, at)
            for ahead in range(min(HORIZON, steps - 1 - at)):
                then = np.linalg.matrix_power(move, ahead + 1)
                best, blind, total = best + now @ then.max(axis=1), blind + (now @ then).max(), total + 1
    procedure = Known(float(best / total), float(blind / total))
    return {
        "step": Known(held.oracle_step, held.blind_step),
        "next": Known(held.prior_next, held.blind_next),
        "task": Known(1.0, 1.0),
        "procedure": procedure,
        "procedure_goal": procedure,
    }


def ceilings_of(root: Path) -> dict[str, Known]:
    """The ceilings of the test split of a set that ``make`` wrote, by its manifest: of COIN's questions and of a ``narration``.

    Raises DataError for another folder.
    """
    rules, tasks = _rules_of(root)
    whole = bayes_ahead.narration(rules) if tasks else bayes_ahead.table_narration(rules)
    return (task_ceilings if tasks else table_ceilings)(rules) | {"narration": Known(*whole)}


def anticipation_of(root: Path, seen: int = SEEN, ahead: int = AHEAD) -> dict[str, Known]:
    """Of the same set's LTA files: ``verb``, ``noun`` and ``action``, right by place."""
    rules, tasks = _rules_of(root)
    found = (bayes_ahead.anticipation if tasks else bayes_ahead.table_anticipation)(rules, seen, ahead)
    return {name: Known(*known) for name, known in found.items()}


def _rules_of(root: Path) -> tuple[Rules, bool]:
    """Of the test split, and whether the set has the full grammar."""
    recipe = recipe_of(root / "manifest.json")
    if recipe is None:
        raise DataError(f"{root / 'manifest.json'}: no 'recipe': not a synthetic set")
    holdout = recipe.get("holdout")
    if not isinstance(holdout, str | None):
        raise DataError(f"{root / 'manifest.json'}: 'holdout' should be a name, got {type(holdout).__name__}")
    return Rules(holdout, unseen=holdout is not None), recipe.get("grammar") == "tasks"


def recipe_of(manifest: Path) -> dict[str, Any] | None:
    """What a set was made by; None for a file that does not say."""
    value = read_json(manifest)
    recipe = value.get("recipe") if isinstance(value, dict) else None
    return recipe if isinstance(recipe, dict) else None
