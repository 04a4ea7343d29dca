"""The two grammars as planners and exporters see them: ``table`` (one task, free order) and ``tasks`` (the full grammar).

A timeline is a clip's native record; what a step, a goal or a class is in it depends on the grammar it was made by.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

from vtskip.data.labels import task_words
from vtskip.data.synthetic import tasks
from vtskip.data.synthetic.grammar import (
    ALL_VERBS,
    COLOURS,
    DISTRACTORS,
    DOMAIN,
    SHAPES,
    TASK,
    VERBS,
    Action,
    actions,
)
from vtskip.data.synthetic.holdout import Rules
from vtskip.data.synthetic.plan import Plan, make_plan
from vtskip.data.synthetic.task_plan import TaskPlan, is_hard, make_task_plan
from vtskip.data.timeline import clean_text

Timeline = dict[str, Any]
# Some with the alternatives in brackets that the published classes have; readers drop them.
_VERB_CLASSES = {
    "pick": "pick_up_(lift,_take)",
    "cut": "cut_(trim,_slice,_chop)",
    "wipe": "wipe_(clean)",
    "fill": "fill_(pour)",
    "place": "place_(put_down)",
    "screw": "screw_(tighten)",
    "light": "switch_on_(light)",
    "tap": "hammer_(knock)",
    "pour": "pour_(tip)",
    "insert": "put_(drop,_insert)",
}
_NOUN_MARKS = {"cup": "_(mug)", "box": "", "lamp": "_(light)"}


@dataclass(frozen=True)
class Segment:
    """A step as COIN has it, in source frames; ``number`` is its id."""

    start: int
    end: int
    number: int
    label: str


@dataclass(frozen=True)
class Visit:
    """Acts on one thing in a row: GoalStep's step, Ego-Exo4D's keystep. ``number`` is its id in the scenario's taxonomy."""

    acts: Sequence[dict[str, Any]]
    text: str
    number: int
    relevant: str


class Grammar(Protocol):
    """What makers and exporters ask. ``version``: raised when the same seed no longer gives the same pictures or texts."""

    version: int

    @property
    def verbs(self) -> Mapping[str, str]: ...  # verb -> LTA class
    @property
    def nouns(self) -> Mapping[str, str]: ...  # noun -> LTA class
    def plan(self, uid: str, seed: tuple[int, ...], seconds: tuple[float, float], fps: int, rules: Rules) -> Plan: ...
    def facts(self, plan: Plan) -> dict[str, Any]: ...
    def hard(self, seed: tuple[int, ...]) -> bool: ...
    def task(self, line: Timeline) -> str: ...
    def task_number(self, line: Timeline) -> int: ...
    def domain(self, line: Timeline) -> str: ...
    def goal(self, line: Timeline) -> str: ...
    def scenario(self, line: Timeline) -> str: ...
    def segments(self, line: Timeline) -> list[Segment]: ...
    def visits(self, line: Timeline) -> list[Visit]: ...
    def relevance(self, line: Timeline, act: dict[str, Any], visit: Visit) -> str: ...
    def taxonomy(self) -> list[tuple[str, int, str, int, str]]: ...
    def keysteps(self) -> dict[str, dict[int, str]]: ...
    def sentences(self) -> list[str]: ...


def action_of(act: dict[str, Any]) -> Action:
    return Action(act["verb"], act["colour"], act["shape"], act.get("into", ""))


def _named(step: tasks.Step) -> dict[str, str]:
    return {"kind": step.kind, "shape": step.shape} | ({"into": step.into} if step.into else {})


def _noun_classes(shapes: Sequence[str]) -> dict[str, str]:
    """``red cup`` -> ``red_cup_(mug)``."""
    return {f"{c} {s}": f"{c}_{s}{_NOUN_MARKS.get(s, '')}" for c, s in product(COLOURS, shapes)}


def _spoken(action: Action) -> list[str]:
    return [clean_text(action.narration), clean_text(action.paraphrase), action.label, clean_text(action.label)]


class Table:
    """One task, "work at the table": every act is a step, drawn freely."""

    version = 2
    verbs = {verb: _VERB_CLASSES.get(verb, verb) for verb in VERBS}
    nouns = _noun_classes(SHAPES)
    _ids = {action: number for number, action in enumerate(actions(), 1)}

    def plan(self, uid: str, seed: tuple[int, ...], seconds: tuple[float, float], fps: int, rules: Rules) -> Plan:
        return make_plan(uid, seed, seconds, fps, rules)

    def facts(self, plan: Plan) -> dict[str, Any]:
        return {}

    def hard(self, seed: tuple[int, ...]) -> bool:
        return False

    def task(self, line: Timeline) -> str:
        return TASK

    def task_number(self, line: Timeline) -> int:
        return 0

    def domain(self, line: Timeline) -> str:
        return DOMAIN

    def goal(self, line: Timeline) -> str:
        return "Work at the table"

    def scenario(self, line: Timeline) -> str:
        return "Working at the table"

    def segments(self, line: Timeline) -> list[Segment]:
        told = [(act, action_of(act)) for act in line["steps"]]
        return [Segment(act["contact"], act["end"], self._ids[a], a.label) for act, a in told]

    def visits(self, line: Timeline) -> list[Visit]:
        """The acts of a timeline, those on one thing together."""
        groups: list[list[dict[str, Any]]] = []
        for act in line["steps"]:
            before = groups[-1][-1] if groups else None
            if before is not None and before["verb"] != "pick" and action_of(before).noun == action_of(act).noun:
                groups[-1].append(act)
            else:
                groups.append([act])
        nouns = [action_of(group[0]).noun for group in groups]
        numbers = {noun: number for number, noun in enumerate(self.nouns, 1)}
        return [
            Visit(group, f"work on the {noun}", numbers[noun], self._relevant(group))
            for group, noun in zip(groups, nouns, strict=True)
        ]

    def _relevant(self, acts: Sequence[dict[str, Any]]) -> str:
        """A thing that was only shaken is as it was before."""
        return "optional" if {act["verb"] for act in acts} == {"shake"} else "essential"

    def relevance(self, line: Timeline, act: dict[str, Any], visit: Visit) -> str:
        return self._relevant([act])

    def taxonomy(self) -> list[tuple[str, int, str, int, str]]:
        return [(DOMAIN, 0, TASK, number, action.label) for action, number in self._ids.items()]

    def keysteps(self) -> dict[str, dict[int, str]]:
        return {self.scenario({}): {k: f"Work on the {noun}" for k, noun in enumerate(self.nouns, 1)}}

    def sentences(self) -> list[str]:
        return [text for action in actions() for text in _spoken(action)] + [clean_text(t) for t in DISTRACTORS]


class Tasks:
    """The full grammar. Version 3 has second nouns."""

    version = 3
    verbs = {verb: _VERB_CLASSES.get(verb, verb) for verb in ALL_VERBS}
    nouns = _noun_classes(tasks.SHAPES)
    _ids = {step: number for number, step in enumerate(tasks.steps(), 1)}
    _numbers = {name: number for number, name in enumerate(tasks.TASKS)}

    def plan(self, uid: str, seed: tuple[int, ...], seconds: tuple[float, float], fps: int, rules: Rules) -> Plan:
        return make_task_plan(uid, seed, seconds, fps, rules)

    def facts(self, plan: Plan) -> dict[str, Any]:
        """``parts``: the steps, with the first and last of their acts."""
        assert isinstance(plan, TaskPlan)
        parts = [{**_named(p.step), "first": p.first, "last": p.last, "optional": p.optional} for p in plan.parts]
        return {"grammar": "tasks", "task": plan.task, "hard": plan.hard, "task_steps": parts}

    def hard(self, seed: tuple[int, ...]) -> bool:
        return is_hard(seed)

    def task(self, line: Timeline) -> str:
        return str(line["task"])

    def task_number(self, line: Timeline) -> int:
        return self._numbers[line["task"]]

    def domain(self, line: Timeline) -> str:
        return tasks.TASKS[line["task"]].domain

    def goal(self, line: Timeline) -> str:
        return task_words(line["task"]).capitalize()

    scenario = goal

    def visits(self, line: Timeline) -> list[Visit]:
        found = []
        for part in line["task_steps"]:
            step = tasks.Step(part["kind"], part["shape"], part.get("into", ""))
            acts = line["steps"][part["first"] : part["last"] + 1]
            relevant = "optional" if part["optional"] else "essential"
            found.append(Visit(acts, step.label, self._ids[step], relevant))
        return found

    def segments(self, line: Timeline) -> list[Segment]:
        return [Segment(v.acts[0]["contact"], v.acts[-1]["end"], v.number, v.text) for v in self.visits(line)]

    def relevance(self, line: Timeline, act: dict[str, Any], visit: Visit) -> str:
        return visit.relevant

    def taxonomy(self) -> list[tuple[str, int, str, int, str]]:
        return [
            (task.domain, number, name, self._ids[step], step.label)
            for number, (name, task) in enumerate(tasks.TASKS.items())
            for step in task.steps
        ]

    def keysteps(self) -> dict[str, dict[int, str]]:
        return {
            self.scenario({"task": name}): {self._ids[step]: step.label.capitalize() for step in task.steps}
            for name, task in tasks.TASKS.items()
        }

    def sentences(self) -> list[str]:
        colours = [(s, c, o) for s in tasks.steps() for c in COLOURS for o in (COLOURS if s.into else ("",))]
        acts = dict.fromkeys(a for step, colour, other in colours for a in step.actions(colour, other))
        texts = [text for action in acts for text in _spoken(action)]
        texts += [text for step in tasks.steps() for text in (step.label, clean_text(step.label))]
        goals = [task_words(name) for name in tasks.TASKS]
        return texts + goals + [clean_text(goal) for goal in goals] + [clean_text(t) for t in DISTRACTORS]


GRAMMARS: dict[str, Grammar] = {"table": Table(), "tasks": Tasks()}


def grammar_of(line: Timeline) -> Grammar:
    """The grammar that a timeline was made by; the table's do not say so."""
    return GRAMMARS[line.get("grammar", "table")]
