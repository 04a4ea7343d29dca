"""The full grammar: its sizes, its clips, its hold-outs, and what is known of its questions."""

import dataclasses
import hashlib
import itertools
import json
import math
from collections import Counter, defaultdict
from dataclasses import asdict

import numpy as np
import pytest

from vtskip.data.synthetic.bayes import Known, ceilings_of, table_ceilings, task_ceilings
from vtskip.data.synthetic.grammar import ALL_VERBS, COLOURS, INTO
from vtskip.data.synthetic.grammars import GRAMMARS
from vtskip.data.synthetic.holdout import HOLDOUTS, Rules
from vtskip.data.synthetic.levels import LEVELS
from vtskip.data.synthetic.relevance import is_relevant, rasterise, relevance
from vtskip.data.synthetic.render import Renderer
from vtskip.data.synthetic.task_plan import GROUPS, Part, make_task_plan
from vtskip.data.synthetic.tasks import KINDS, SHAPES, TASKS, Step, steps
from vtskip.data.synthetic.tiers import TIERS, Order
from vtskip.errors import DataError


@pytest.fixture(scope="module")
def plans():
    """All of the tier full, as drawn: ten frames per second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TIERS, "full", dataclasses.replace(TIERS["full"], rates=()))
        order = Order("full")
        return [order.plan(number) for number in range(order.spec.clips)]


def _path(plan):
    return tuple(part.step for part in plan.parts)


# -- the grammar -----------------------------------------------------------------------------------------------------------


def test_sizes():
    assert len({task.domain for task in TASKS.values()}) == 4 and len(TASKS) == 12 and len(steps()) == 41
    assert len(ALL_VERBS) == 16 and len(COLOURS) * len(SHAPES) == 24
    used = {verb for step in steps() for verb in step.verbs}
    assert used == set(ALL_VERBS) and {step.shape for step in steps()} == set(SHAPES)
    assert all(2 <= len(verbs) <= 4 for _, verbs in KINDS.values())
    assert len({step.label for step in steps()}) == 41
    words = [word for verb in ALL_VERBS.values() for word in (verb.base, verb.third, verb.other)]
    assert len(set(words)) == 3 * 16
    two = [step for step in steps() if step.into]
    assert {verb for step in two for verb in step.verbs} & {*INTO} == {*INTO} and len({step.into for step in two}) == 3
    assert all(bool(step.into) == bool({*INTO} & {*step.verbs}) and step.into != step.shape for step in steps())


def test_a_second_noun_is_in_every_text():
    pour, stow = Step("pour", "bottle", "cup"), Step("stow", "radio", "box")
    assert (pour.label, stow.label) == ("pour the bottle into the cup", "stow the radio in the box")
    first, second = pour.actions("red", "blue")
    assert (first.into, first.label) == ("", "open the red bottle")
    assert (second.noun, second.into, second.label) == (
        "red bottle",
        "blue cup",
        "pour the red bottle into the blue cup",
    )
    assert second.narration == "#C C pours the red bottle into the blue cup"
    assert stow.actions("green", "red")[-1].paraphrase == "#C C drops the green radio into the red box"


def test_tasks_are_partial_orders_with_shared_beginnings():
    lengths = set()
    for task in TASKS.values():
        paths = task.paths()
        assert sum(paths.values()) == pytest.approx(1) and len(paths) > 1
        lengths |= {len(path) for path in paths}
        assert {step for path in paths for step in path} == set(task.steps)
    assert lengths == {3, 4, 5, 6, 7}
    uses = Counter(step for task in TASKS.values() for step in task.steps)
    assert sum(n > 1 for n in uses.values()) >= 15  # shared across tasks
    for domain in {task.domain for task in TASKS.values()}:
        own = [task for task in TASKS.values() if task.domain == domain]
        assert len(own) == 3 and len({next(iter(task.paths()))[:2] for task in own}) == 1
    ways = [way for task in TASKS.values() for path in task.paths() for way in [path]]
    assert any(a == b for path in ways for a, b in itertools.pairwise(path))  # repeated
    tea = TASKS["BrewTheTea"]
    assert tea.optional(Step("seal", "bottle")) and not tea.optional(Step("mix", "cup"))
    orders = {path[2:4] for path in tea.paths()}
    assert orders == {way[::-1] for way in orders} and len(orders) == 2  # swappable


# -- what is known of the questions ------------------------------------------------------------------------------------------


def test_the_goal_helps_by_ten_points_and_more():
    known = task_ceilings(Rules())
    assert known["procedure_goal"].best - known["procedure"].best >= 0.10
    assert 0.3 < known["next"].best < 0.8 and known["next"].blind < known["next"].best - 0.3
    assert known["step"] == Known(1.0, pytest.approx(known["step"].blind)) and known["step"].blind < 0.15
    assert known["task"] == Known(pytest.approx(1.0), pytest.approx(1 / 12))
    assert all(0 < k.blind < k.best <= 1 + 1e-12 for k in known.values())


def test_ceilings_are_what_the_best_guess_gets_on_the_clips(plans):
    """The most frequent answer per situation, counted on all clips of the tier, against the enumeration."""
    asked = {"next": defaultdict(Counter), "procedure": defaultdict(Counter), "procedure_goal": defaultdict(Counter)}
    shown = Counter()
    for plan in plans:
        path = _path(plan)
        shown.update(path)
        for at, now in enumerate(path[:-1]):
            coming = path[at + 1 : at + 6]
            asked["next"][now][coming[0]] += 1
            for ahead, answer in enumerate(coming):
                asked["procedure"][now, len(coming), ahead][answer] += 1
                asked["procedure_goal"][now, len(coming), ahead, plan.task][answer] += 1
    known = task_ceilings(Rules())
    for task, counts in asked.items():
        right = sum(max(answers.values()) for answers in counts.values()) / sum(c.total() for c in counts.values())
        assert abs(right - known[task].best) < 0.03, task
    assert abs(max(shown.values()) / shown.total() - known["step"].blind) < 0.02


def test_the_majority_of_training_is_blind_on_the_test_clips(plans):
    train, test = plans[:560], plans[640:]
    majority = Counter(step for plan in train for step in _path(plan)).most_common(1)[0][0]
    told = [step for plan in test for step in _path(plan)]
    assert len(told) > 640 and told.count(majority) / len(told) < task_ceilings(Rules())["step"].blind + 0.03
    colours = Counter(part.colour for plan in test for part in plan.parts)
    assert max(colours.values()) / colours.total() < 0.25 + 0.05


def test_the_table_has_ceilings_too(smoke, tmp_path):
    known = ceilings_of(smoke)
    assert known.pop("narration").best == 1
    assert known == table_ceilings(Rules())
    assert known["next"].best == pytest.approx(1 / 47) and known["procedure"].best < 1 / 47
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="not a synthetic set"):
        ceilings_of(tmp_path)


# -- clips -----------------------------------------------------------------------------------------------------------------


def test_clips_follow_their_tasks_in_good_time(plans):
    for plan in plans:
        assert 200 <= plan.frames <= 400 and plan.rate == 10
        assert TASKS[plan.task].paths()[_path(plan)] > 0
        assert [s.action.verb for s in plan.steps] == [v for part in plan.parts for v in part.step.verbs]
        for part in plan.parts:
            acts = plan.steps[part.first : part.last + 1]
            assert {a.action.noun for a in acts} == {f"{part.colour} {part.step.shape}"}
            assert len({a.thing for a in acts}) == 1 and 15 <= acts[-1].end - acts[0].contact <= 60
            assert {a.action.into for a in acts} - {""} == (
                {f"{part.other} {part.step.into}"} if part.step.into else set()
            )
            assert all((a.into is None) == (a.action.verb not in INTO) for a in acts)
        contacts = [math.ceil(s.contact / 5) for s in plan.steps]
        assert all(5 * k < s.end for k, s in zip(contacts, plan.steps)) and len(set(contacts)) == len(contacts)
        assert all(a.away <= b.approach for a, b in itertools.pairwise(plan.steps))
        assert plan.steps[-1].away <= plan.frames
        gaps = [plan.steps[b.first].approach - plan.steps[a.last].away for a, b in itertools.pairwise(plan.parts)]
        assert all(5 <= gap <= 23 for gap in gaps)
    counts = Counter(plan.task for plan in plans)
    assert set(counts) == set(TASKS) and max(counts.values()) < 2 * min(counts.values())


def test_the_clips_of_full_are_those_of_version_3(plans):
    """A documented regression value, as for the other tiers: plans of a seed never change under a version."""
    text = json.dumps([asdict(plan) for plan in plans[::10]], default=str)
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "6765f413f542e8a2a60733091057531952f2995e218c630d3f0909c0b130669f"
    )


def test_hard_clips_show_what_a_thing_is_in_two_cells_for_a_moment(plans):
    hard = [plan for plan in plans if plan.hard]
    assert 0.4 < len(hard) / len(plans) < 0.6 and not any(plan.cues for plan in plans if not plan.hard)
    for plan in hard:
        assert {(thing.colour, thing.shape) for thing in plan.things} == {("grey", "cover")}
        acts = [(plan.steps[part.first], part.colour, part.step.shape) for part in plan.parts]
        acts += [(plan.steps[part.last], part.other, part.step.into) for part in plan.parts if part.step.into]
        cues = sorted(plan.cues, key=lambda cue: cue.start)
        assert len(cues) == len(acts)
        for (act, colour, shape), cue in zip(sorted(acts, key=lambda a: a[0].contact), cues):
            assert (cue.start, cue.end, cue.colour, cue.shape) == (act.contact, act.end, colour, shape)
            seen = [t for t in range(0, plan.frames, 5) if cue.start <= t < cue.end]
            assert len(seen) in (1, 2) and seen[0] == 5 * math.ceil(act.contact / 5)
    plan = hard[0]
    value, (x, y), at = relevance(plan, LEVELS["L1"]), plan.cues[0].at, plan.cues[0].start + 1
    cells = [(int(y * 7), round(x * 7) - 1), (int(y * 7), round(x * 7))]
    assert all(is_relevant(rasterise(value, at, (7, 7)))[cell] for cell in cells)
    boxes = [
        (left, top, right, bottom)
        for kind, a, b, left, top, right, bottom in value["areas"]
        if kind == 2 and a <= at < b
    ]
    card = (x - 1 / 7, y - 0.5 / 7, x + 1 / 7, y + 0.5 / 7)
    assert any(np.abs(np.subtract(box, card)).max() < 1 / 40 for box in boxes)  # static and relevant


def test_nothing_but_the_card_tells_what_a_hard_thing_is(plans):
    """With every colour and shape changed, a hard clip's pictures are the same outside of its cards."""
    plan = next(p for p in plans if p.hard and any(part.step.into for part in p.parts))
    swapped = dict(zip(COLOURS, [*list(COLOURS)[1:], next(iter(COLOURS))]))

    def other(action):
        into = f"{swapped[action.into.split()[0]]} lamp" if getattr(action, "into", "") else ""
        changed = {"colour": swapped[action.colour], "shape": "box" if action.shape != "box" else "cup"}
        return dataclasses.replace(action, **changed | ({"into": into} if into else {}))

    twin = dataclasses.replace(
        plan,
        steps=[dataclasses.replace(s, action=other(s.action)) for s in plan.steps],
        cards=[dataclasses.replace(c, colour=swapped[c.colour], shape=other(c).shape) for c in plan.cards],
    )
    one, two = Renderer(plan, 70), Renderer(twin, 70)
    shown = 0
    for t in range(0, plan.frames, 2):
        differs = (one.frame(t) != two.frame(t)).any(axis=2)
        cards = [c for c in plan.cues if c.start <= t < c.end]
        for cue in cards:
            assert differs.any()
            left, top = round((cue.at[0] - 1 / 7) * 70), round((cue.at[1] - 0.5 / 7) * 70)
            differs[top : top + 11, left : left + 21] = False
            shown += 1
        assert not differs.any()
    assert shown > 10


def test_both_kinds_of_clips_have_all_areas(plans):
    """A motion rule would find about half of the relevant cells, and half of what it finds would be relevant."""
    for hard in (False, True):
        counts = np.zeros(4)
        for plan in [p for p in plans if p.hard == hard][:3]:
            value = relevance(plan, LEVELS["L1"])
            for t in range(0, plan.frames, 5):
                counts += np.bincount(rasterise(value, t, (7, 7)).ravel(), minlength=4)
        shares = counts / counts.sum()
        assert shares[0] > 0.7 and all(0.02 < share < 0.15 for share in shares[1:])
        assert 0.25 < shares[3] / (shares[3] + shares[2]) < 0.75 and 0.25 < shares[3] / (shares[3] + shares[1]) < 0.75


def test_contact_changes_the_picture_at_once_for_every_verb(plans):
    seen = defaultdict(list)
    for plan in plans[:14]:
        renderer = Renderer(plan, 96)
        for act in plan.steps:
            if len(seen[act.action.verb]) < 3:
                before, touch = (renderer.frame(t).astype(int) for t in (act.approach - 1, act.contact))
                seen[act.action.verb].append((np.abs(touch - before).max(axis=2) > 40).mean())
    assert set(seen) == set(ALL_VERBS), set(ALL_VERBS) - set(seen)
    assert min(min(shares) for shares in seen.values()) > 0.04


def test_shapes_and_traces_differ():
    """No two shapes look alike, and no two verbs leave the same trace on one thing."""
    from vtskip.data.synthetic.draw import Canvas
    from vtskip.data.synthetic.plan import Thing
    from vtskip.data.synthetic.things import RECEIVED, draw_thing

    def drawn(shape, state, strength):
        canvas = Canvas(np.full((64, 64, 3), 120.0))
        draw_thing(canvas, Thing("red", shape, 0.5, 0.5), (0.5, 0.5), state, strength)
        return canvas.image

    quiet = ("pick", "place", "turn", "shake", "insert")  # seen by the hand or by an angle
    states = [(verb, s) for verb in (*ALL_VERBS, RECEIVED["insert"]) if verb not in quiet for s in (0.35, 1.0)]
    for shape in SHAPES:
        traces = {state: drawn(shape, *state) for state in states if state[0] != "wipe" or state[1] < 1}
        for (a, one), (b, two) in itertools.combinations(traces.items(), 2):
            assert a[0] == b[0] or (np.abs(one - two).max(axis=2) > 40).sum() >= 12, (shape, a, b)
    for a, b in itertools.combinations(SHAPES, 2):
        assert (np.abs(drawn(a, "", 0) - drawn(b, "", 0)).max(axis=2) > 40).sum() > 100, (a, b)


# -- hold-outs -------------------------------------------------------------------------------------------------------------

KEY_VERBS = set().union(*GROUPS)


def _nouns(action):
    return [action.noun, action.into] if action.into else [action.noun]


def _combinations(holdout, plan):
    """What the hold-out is about, as (part, part)."""
    return {
        "pairs": [(s.action.verb, noun) for s in plan.steps if s.action.verb in KEY_VERBS for noun in _nouns(s.action)],
        "orders": [(plan.task, _path(plan))],
        "looks": [tuple(noun.split()) for s in plan.steps for noun in _nouns(s.action)],
        "backgrounds": [(plan.tone, plan.task)],
    }[holdout]


@pytest.mark.parametrize("holdout", HOLDOUTS)
def test_training_has_every_part_and_none_of_the_held_out_combinations(holdout):
    order = Order("full", holdout=holdout)
    known, test = set(), set()
    for number in range(order.spec.clips):
        target = known if number < order.spec.train + order.spec.val else test
        target.update(_combinations(holdout, order.plan(number)))
    assert test and not known & test
    if holdout == "orders":
        assert {task for task, _ in test} <= {task for task, _ in known}
        steps_of = [{(task, step) for task, path in part for step in path} for part in (known, test)]
        assert steps_of[1] <= steps_of[0]
    else:
        for k in (0, 1):
            assert {c[k] for c in test} <= {c[k] for c in known}
    limits = task_ceilings(Rules(holdout, unseen=True))
    assert all(0 < k.blind < k.best <= 1 + 1e-12 for k in limits.values())


def test_no_step_needs_two_colours_kept_from_training():
    for step in steps():
        assert sum(bool(group & set(step.verbs)) for group in GROUPS) <= 1


def test_every_sentence_is_listed(plans):
    from vtskip.data.timeline import clean_text

    held = set(GRAMMARS["tasks"].sentences())
    assert any(s.into is not None for plan in plans[:60] for s in plan.steps)
    for plan in plans[:60]:
        assert {clean_text(s.action.narration) for s in plan.steps} <= held
        assert {part.step.label for part in plan.parts} <= held
    assert isinstance(plans[0].parts[0], Part) and make_task_plan("a", (1, 2), (20, 40)).frames >= 200
