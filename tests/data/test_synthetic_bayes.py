"""Ceilings of anticipation and narration against grammars that are small enough to be counted by hand."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from vtskip.data.synthetic import bayes_ahead
from vtskip.data.synthetic.bayes import table_ceilings, task_ceilings
from vtskip.data.synthetic.bayes_ahead import anticipation, narration, table_anticipation, table_narration
from vtskip.data.synthetic.holdout import HOLDOUTS, Rules
from vtskip.data.synthetic.task_plan import paths_of, tasks_of
from vtskip.data.synthetic.tasks import TASKS, Block, Step, Task

CLEAN, MIX, POUR = Step("clean", "cup"), Step("mix", "cup"), Step("pour", "bottle", "cup")


@pytest.fixture
def only(monkeypatch):
    """Sets the grammar's one task, by the probability of each of its ways."""

    def put(ways):
        monkeypatch.setattr("vtskip.data.synthetic.task_plan.TASKS", known := {"A": Task("D", "A", (Block(ways),))})
        monkeypatch.setattr(bayes_ahead, "TASKS", known)

    return put


def test_anticipation_of_two_acts_that_repeat(only):
    """fill, wipe, fill, wipe ...: the verb is certain, the next cup's colour one of four.

    After fill: its wipe, of the same colour, then another cup; after wipe: another cup, both acts.
    """
    only({(CLEAN,): 1.0})
    known = anticipation(Rules(), seen=2, ahead=2)
    assert known["verb"] == pytest.approx((1.0, 0.5))
    assert known["noun"] == pytest.approx(((1 + 3 / 4) / 4, 1 / 4))
    assert known["action"] == pytest.approx(((1 + 3 / 4) / 4, 1 / 8))


def test_anticipation_where_the_view_tells_more_or_less(only):
    """fill wipe or fill stir shake, half and half. One act in view: of five acts as likely the last, two are fills.

    After a fill: wipe or stir, a half; after all others: fill, for certain, but for stir: shake. One place ahead that is
    0.4 / 2 + 0.6. With all acts of a longer view it is the same: a fill does not tell what it is for.
    """
    only({(CLEAN,): 0.5, (MIX,): 0.5})
    for seen in (1, 8):
        assert anticipation(Rules(), seen, 1)["verb"] == pytest.approx((0.4 / 2 + 0.6, 0.4))
    # Two steps: the second is the other one, which is known as soon as the first is.
    only({(CLEAN, MIX): 0.5, (MIX, CLEAN): 0.5})
    short, long = (anticipation(Rules(), seen, 1)["verb"][0] for seen in (1, 8))
    # after each of 10 acts (2 ways of 5): the first fill 1/2, the second in view of the first step 1, else by half
    assert long == pytest.approx((2 * 0.5 + 8) / 10)
    assert short == pytest.approx((4 * 0.5 + 6) / 10)


def test_narration_by_hand(only):
    """The first act: one of four colours. Then wipe or stir, of the same cup; then, after stir, shake."""
    only({(CLEAN,): 0.5, (MIX,): 0.5})
    assert narration(Rules()) == (1.0, pytest.approx((1 / 4 + 1 / 2 + 1 / 2) / 2.5))
    only({(POUR,): 1.0})  # what is poured into has a colour of its own
    assert narration(Rules()) == (1.0, pytest.approx((1 / 4 + 1 / 4) / 2))


def test_verbs_of_the_full_grammar_are_those_of_long_videos():
    """The share of the commonest verb after each view, counted in a long video of drawn clips; counting favours it a little."""
    rng, ahead, seen, rules = np.random.default_rng(0), 5, 4, Rules()
    ways = {
        (name, path): p * q for name, p in tasks_of(rules).items() for path, q in paths_of(TASKS[name], rules).items()
    }
    drawn = rng.choice(len(ways), 6000, p=list(ways.values()))
    acts = []
    for clip in drawn:
        path = list(ways)[clip][1]
        acts += [(s.verbs[k], s.shape, s.into, n, k) for n, s in enumerate(path) for k in range(len(s.verbs))]
    counts = Counter()
    for at in range(seen - 1, len(acts) - ahead):
        view = acts[at + 1 - seen : at + 1]
        starts = [k for k, act in enumerate(view) if act[3] == act[4] == 0]
        view = view[starts[-1] :] if starts else view
        rest = tuple((*act[:3], act[4] == 0) for act in view[1:])
        key = (view[0][:3], bool(starts), rest)
        counts.update((key, ahead_, acts[at + 1 + ahead_][0]) for ahead_ in range(ahead))
    best = Counter()
    for (key, place, _), n in counts.items():
        best[key, place] = max(best[key, place], n)
    assert best.total() / counts.total() == pytest.approx(anticipation(rules, seen, ahead)["verb"][0], abs=0.01)


@pytest.mark.parametrize("holdout", [None, *HOLDOUTS])
def test_seeing_is_never_worse(holdout):
    rules = Rules(holdout, unseen=holdout is not None)
    for found in (anticipation(rules), table_anticipation(rules)):
        for best, blind in found.values():
            assert 0 < blind <= best + 1e-9 <= 1 + 1e-9
    for best, blind in (narration(rules), table_narration(rules)):
        assert best == 1 and 0 < blind < 1
    known = anticipation(Rules())
    assert known["action"][0] > 4 * known["action"][1] and known["verb"][0] > 2 * known["verb"][1]


def test_nothing_is_to_be_known_of_the_free_grammar():
    """48 acts, any of them next but the one before: six places of a clip, of which the first may be any."""
    _, blind = table_narration(Rules())
    assert blind == pytest.approx((1 / 48 + 5 / 47) / 6)
    best, blind = table_anticipation(Rules(), ahead=1)["action"]
    assert blind == pytest.approx(1 / 48) and best == pytest.approx((1 / 48 + 5 / 47) / 6)
    verbs = [table_anticipation(Rules(), ahead=n)["verb"][0] for n in (1, 3, 20)]
    assert all(a >= b for a, b in itertools.pairwise(verbs)) and verbs[-1] < 1 / 6 + 0.01


def test_the_table_in_the_docs_is_the_enumeration():
    text = (Path(__file__).resolve().parents[2] / "docs/data.md").read_text(encoding="utf-8")
    head = "| `tasks` | best | blind | | `table` | best | blind |"
    rows = text.partition(head)[2].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    found = [{name: (best, blind) for name, best, blind in side} for side in zip(*((c[:3], c[4:]) for c in cells))]
    rules, questions = Rules(), ("step", "next", "task", "procedure", "procedure_goal")
    known = [(task_ceilings, narration, anticipation), (table_ceilings, table_narration, table_anticipation)]
    for told, (asked, whole, ahead) in zip(found, known, strict=True):
        values = [(asked(rules)[name].best, asked(rules)[name].blind) for name in questions]
        values += [whole(rules), *ahead(rules).values()]
        assert list(told.values()) == [(f"{best:.3f}", f"{blind:.3f}") for best, blind in values]
