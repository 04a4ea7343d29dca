"""Relevant and moving areas against the pictures themselves, and on patch grids."""

import numpy as np
import pytest

from vtskip.data.files import read_json
from vtskip.data.synthetic.grammar import COLOURS
from vtskip.data.synthetic.levels import LEVELS
from vtskip.data.synthetic.plan import make_plan
from vtskip.data.synthetic.relevance import (
    KINDS,
    _boxes,
    _Outlines,
    is_moving,
    is_relevant,
    rasterise,
    relevance,
)
from vtskip.data.synthetic.render import Renderer
from vtskip.data.synthetic.task_plan import make_task_plan
from vtskip.data.synthetic.things import RADIUS

GRID = (20, 20)
SIZE = 80  # pixels: four by four per cell


def _plan(number, seconds=(8, 12)):
    return make_plan(str(number), (3, 0, number), seconds)


def _changed(renderer, t):
    """Cells whose pixels clearly differ from the frame before."""
    a, b = (renderer.frame(k).astype(int) for k in (t - 1, t))
    strong = np.abs(a - b).max(axis=2) > 40
    return strong.reshape(20, 4, 20, 4).mean(axis=(1, 3)) >= 0.5


@pytest.mark.parametrize("level", ["L0", "L2"])
def test_what_changes_in_the_picture_is_marked_as_moving(level):
    plan = _plan(1)
    value, renderer = relevance(plan, LEVELS[level]), Renderer(plan, SIZE, LEVELS[level])
    found = changed = 0
    for t in range(1, plan.frames):
        cells = _changed(renderer, t)
        # what is uncovered counts where something was the frame before
        marked = is_moving(rasterise(value, t, GRID, 0.05)) | (rasterise(value, t - 1, GRID, 0.05) > 0)
        found, changed = found + (cells & marked).sum(), changed + cells.sum()
    assert changed > 500 and found > 0.9 * changed


def test_the_thing_in_front_is_relevant_from_the_approach_to_the_end():
    plan = _plan(2)
    value = relevance(plan, LEVELS["L1"])
    for step in plan.steps:
        thing = plan.things[step.thing]
        cell = int(thing.y * 20), int(thing.x * 20)
        at = {t: rasterise(value, t, GRID) for t in range(step.approach - 1, step.away)}
        assert not is_relevant(at[step.approach - 1]).any()
        for t in range(step.approach, step.end):
            assert is_relevant(at[t])[cell]
        assert not any(is_relevant(at[t]).any() for t in range(step.end, step.away))
        settled = step.approach > thing.born + 5
        assert not settled or KINDS[at[step.approach][cell]] == "static_relevant"
        corner = int((thing.y - 1.6 * RADIUS) * 20), int((thing.x - 2.2 * RADIUS) * 20)
        assert at[step.approach][corner] == 0


def test_all_four_kinds_occur_and_motion_does_not_give_relevance_away():
    """A motion rule would find half of the relevant cells, and half of what it finds would be relevant."""
    counts = np.zeros(4)
    for number in range(4):
        plan = _plan(number)
        value = relevance(plan, LEVELS["L1"])
        for t in range(0, plan.frames, 5):
            counts += np.bincount(rasterise(value, t, (7, 7)).ravel(), minlength=4)
    shares = counts / counts.sum()
    assert shares[0] > 0.7
    assert all(0.02 < share < 0.15 for share in shares[1:])
    assert 0.25 < shares[3] / (shares[3] + shares[2]) < 0.75
    assert 0.25 < shares[3] / (shares[3] + shares[1]) < 0.75


def test_the_arm_and_the_clock_move_and_tell_nothing():
    plan = _plan(1)
    value = relevance(plan, LEVELS["L2"])
    x, y = Renderer(plan, 16, LEVELS["L2"]).camera.clock
    dx, dy = value["camera"][0]
    quiet = rasterise(value, 0, GRID)
    assert KINDS[quiet[int((y + dy) * 20), int((x + dx) * 20)]] == "moving_irrelevant"
    assert not is_relevant(quiet).any()
    step = plan.steps[0]
    kinds = rasterise(relevance(plan, LEVELS["L1"]), step.contact, GRID)
    bottom = kinds[-1]
    assert is_moving(bottom).any() and not is_relevant(bottom).any()


def test_areas_follow_the_camera():
    seen = []
    for number in range(4):
        plan = _plan(number, (10, 12))
        still, moved = (relevance(plan, LEVELS[name]) for name in ("L1", "L3"))
        assert still["camera"] is None and len(moved["camera"]) == plan.frames
        for step in (plan.steps[0], plan.steps[-1]):
            dx, dy = moved["camera"][step.contact]
            edges = []
            for value in (still, moved):
                rows, columns = np.nonzero(is_relevant(rasterise(value, step.contact, (100, 100))))
                edges.append(np.array([columns.min(), columns.max(), rows.min(), rows.max()]) / 100)
            assert np.abs(edges[1] - edges[0] - [dx, dx, dy, dy]).max() < 0.012
            seen.append((dx, dy))
    assert (np.ptp(seen, axis=0) > 0.05).all()


def test_cells_need_their_share_and_the_higher_kind_counts():
    value = {
        "camera": None,
        "areas": [[1, 0, 9, 0, 0, 1, 0.5], [2, 3, 5, 0, 0, 0.5, 0.05], [3, 4, 5, 0.9, 0.9, 1.2, 1.2]],
    }
    assert rasterise(value, 0, (2, 2)).tolist() == [[1, 1], [0, 0]]
    assert rasterise(value, 3, (2, 2)).tolist() == [[1, 1], [0, 0]]
    assert rasterise(value, 3, (2, 2), share=0.1).tolist() == [[2, 1], [0, 0]]
    assert rasterise(value, 4, (10, 10))[9].tolist() == [0] * 9 + [3]
    assert rasterise(value, 9, (2, 3)).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_the_files_are_small_and_there_for_every_clip(smoke):
    for uid, clip in read_json(smoke / "manifest.json")["clips"].items():
        path = smoke / f"relevance/{uid}.json"
        value = read_json(path)
        assert (value["uid"], value["frames"], tuple(value["kinds"])) == (uid, clip["frames"], KINDS)
        assert path.stat().st_size < 100 * clip["frames"]
        assert all(0 <= start < end <= clip["frames"] for _, start, end, *_ in value["areas"])


def _probe(features, labels):
    """Share right on the second half of a ridge regression on the first, to one class of four."""
    x = np.asarray(features)
    half = len(x) // 2
    x = (x - x[:half].mean(axis=0)) / (x[:half].std(axis=0) + 1e-6)
    x = np.hstack([x, np.ones((len(x), 1))])
    targets = np.eye(len(COLOURS))[labels]
    weights = np.linalg.solve(x[:half].T @ x[:half] + 5 * np.eye(x.shape[1]), x[:half].T @ targets[:half])
    return ((x[half:] @ weights).argmax(axis=1) == np.asarray(labels)[half:]).mean()


def test_irrelevant_cells_do_not_leak_the_colour_that_relevant_ones_show():
    """A linear probe on mean and spread of each sort of cell: near the blind quarter on the one, far above on the other."""
    told, rest, labels = [], [], []
    for number in range(70):
        plan = _plan(number)
        value, renderer = relevance(plan, LEVELS["L1"]), Renderer(plan, SIZE, LEVELS["L1"])
        for step in plan.steps:
            frame = renderer.frame(step.contact).astype(float)
            mask = np.kron(is_relevant(rasterise(value, step.contact, GRID, 0.01)), np.ones((4, 4), bool))
            for part, keep in ((told, mask), (rest, ~mask)):
                pixels = frame[keep]
                part.append([*pixels.mean(axis=0), *pixels.std(axis=0), *np.diff(pixels.mean(axis=0))])
            labels.append(list(COLOURS).index(step.action.colour))
    assert len(labels) > 150
    assert _probe(told, labels) > 0.7
    # three standard deviations over chance for this many steps
    assert _probe(rest, labels) < 0.25 + 3 * np.sqrt(0.25 * 0.75 / (len(labels) / 2))


def test_irrelevant_cells_do_not_leak_either_noun_of_an_act_that_has_two():
    """As above for the full grammar: what is poured or put, and what it goes into, on the first frame of the act.

    What is counted are pixels of each colour: a thing beside the hand is too small for the mean of a whole picture.
    """
    told, rest, nouns = [], [], ([], [])
    for number in range(800):
        plan = make_task_plan(str(number), (4, 3, number), (20, 40))
        acts = [] if plan.hard else [act for act in plan.steps if act.into is not None]
        for act in acts:
            frame, outlines = Renderer(plan, SIZE).frame(act.contact).astype(float), _Outlines(plan, 64)
            shapes = outlines.shapes(act.contact)
            areas = [[kind, 0, 1, *box] for _, kind, box in _boxes(outlines, act.contact, shapes, shapes)]
            mask = is_relevant(rasterise({"camera": None, "areas": areas}, 0, GRID, 0.01))
            mask = np.kron(mask, np.ones((4, 4), bool))
            for part, keep in ((told, mask), (rest, ~mask)):
                part.append([(np.abs(frame[keep] - c).max(axis=1) < 60).sum() for c in COLOURS.values()])
            for labels, noun in zip(nouns, (act.action.noun, act.action.into)):
                labels.append(list(COLOURS).index(noun.split()[0]))
    assert len(told) > 150
    for labels, least in zip(nouns, (0.5, 0.3)):
        assert _probe(told, labels) > least
        assert _probe(rest, labels) < 0.25 + 3 * np.sqrt(0.25 * 0.75 / (len(labels) / 2))


def test_both_things_are_relevant_while_one_goes_into_the_other():
    plan = next(
        p for p in (make_task_plan("a", (4, 3, n), (20, 40)) for n in range(40)) if any(s.into for s in p.steps)
    )
    value, act = relevance(plan, LEVELS["L1"]), next(s for s in plan.steps if s.into is not None)
    thing = plan.things[act.into]
    cell = int(thing.y * 20), int(thing.x * 20)
    before = plan.steps[plan.steps.index(act) - 1]
    assert before.thing == act.thing and not is_relevant(rasterise(value, before.contact, GRID))[cell]
    assert all(is_relevant(rasterise(value, t, GRID))[cell] for t in range(act.approach, act.end))
    assert not is_relevant(rasterise(value, act.end, GRID)).any()
