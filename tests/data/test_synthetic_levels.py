"""Redundancy levels, compositional hold-outs, ceilings, and the tier full."""

import hashlib
import itertools
import json
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest

from vtskip.data.files import read_json
from vtskip.data.synthetic import TIERS, tiers
from vtskip.data.synthetic.encode import content_hash
from vtskip.data.synthetic.grammar import actions
from vtskip.data.synthetic.holdout import HOLDOUTS, Rules, ceilings, transitions
from vtskip.data.synthetic.levels import LEVELS
from vtskip.data.synthetic.plan import make_plan
from vtskip.data.synthetic.render import Renderer
from vtskip.data.synthetic.tiers import Order, make
from vtskip.errors import ConfigError


def _unchanged(plan, level, tau=0.03):
    """Share of 7 x 7 patches whose mean absolute difference to the sample half a second before is below ``tau``."""
    renderer = Renderer(plan, 112, LEVELS[level])
    frames = np.stack([renderer.frame(t) for t in range(0, 100, 5)]) / 255
    means = np.abs(np.diff(frames, axis=0)).mean(axis=3).reshape(-1, 7, 16, 7, 16).mean(axis=(2, 4))
    return (means < tau).mean()


def test_each_level_is_less_redundant_than_the_one_before():
    plans = [make_plan(str(i), (0, 0, i), (10, 12)) for i in range(3)]
    shares = [np.mean([_unchanged(plan, level) for plan in plans]) for level in LEVELS]
    assert shares[0] > 0.75
    assert all(a >= b for a, b in itertools.pairwise(shares))
    assert shares[0] - shares[4] > 0.15


def test_a_level_changes_the_view_and_not_the_scene():
    plan = make_plan("a", (0, 0, 1), (10, 12))
    drawn = {level: Renderer(plan, 64, LEVELS[level]) for level in LEVELS}
    assert len({r.entry for r in drawn.values()}) == len({r.skin for r in drawn.values()}) == 1
    path = drawn["L3"].camera.offsets
    assert 20 / 224 < np.linalg.norm(path[-1] - path[0]) < 28 / 224
    assert not drawn["L1"].camera.offsets.any() and (drawn["L1"].camera.gains == 1).all()
    assert np.std(drawn["L4"].camera.gains) > np.std(drawn["L3"].camera.gains) > 0.01
    for level, renderer in drawn.items():
        for t in (0, plan.frames - 1):
            assert renderer.frame(t).shape == (64, 64, 3), level


def test_the_default_clips_are_those_of_recipe_2():
    """A documented regression value: the plans of smoke and small with the default options never change under recipe 2."""
    digest = hashlib.sha256()
    for tier in ("smoke", "small"):
        for number in range(TIERS[tier].clips):
            order = Order(tier)
            plan = asdict(order.plan(number))
            assert plan.pop("tone") is None and plan.pop("rate") == 10
            for thing in (*plan["things"], *plan["shelf"]):
                assert thing.pop("scale") == 1
            for step in plan["steps"]:
                assert step.pop("into") is None and step["action"].pop("into") == ""
            digest.update(json.dumps(plan, default=str).encode())
    assert digest.hexdigest() == "ab43de6fd8a3d0c99ff34702ed8ae53195513a5af1275d315b1dd192746a3677"
    recipe = {
        "version": 2,
        "tier": "smoke",
        "seed": 0,
        "train": 8,
        "val": 2,
        "test": 2,
        "seconds": [8, 12],
        "size": 160,
    }
    assert Order("smoke").recipe == recipe


def _order(holdout, seed=0):
    return Order("small", seed, holdout=holdout)


def _combinations(holdout, plan):
    """What the hold-out is about, with its parts."""
    told = [s.action for s in plan.steps]
    return {
        "pairs": [(a.verb, a.noun) for a in told],
        "orders": [(a.verb, b.verb) for a, b in itertools.pairwise(told)],
        "looks": [(a.colour, a.shape) for a in told],
        "backgrounds": [(plan.tone, a.verb) for a in told],
    }[holdout]


@pytest.mark.parametrize("holdout", HOLDOUTS)
def test_training_has_every_part_and_none_of_the_held_out_combinations(holdout):
    order = _order(holdout)
    known, test = set(), set()
    for number in range(order.spec.clips):
        target = known if number < order.spec.train + order.spec.val else test
        target.update(_combinations(holdout, order.plan(number)))
    assert test and not known & test
    for k in (0, 1):
        assert {c[k] for c in test} <= {c[k] for c in known}
    firsts, seconds = ({c[k] for c in known | test} for k in (0, 1))
    assert known | test == set(itertools.product(firsts, seconds))


def test_tones_are_seen():
    """A dark table is darker than a light one in the rendered background."""
    order = _order("backgrounds")
    means = {"dark": [], "light": []}
    for number in range(12):
        plan = order.plan(number)
        plan.shelf.clear()
        means[plan.tone].append(Renderer(plan, 32).background.mean())
    assert len(means["dark"]) > 2 and len(means["light"]) > 2
    assert max(means["dark"]) < min(means["light"])


def test_ceilings_of_the_free_grammar_are_those_by_hand():
    """48 equally frequent actions; the next one is any of the 47 others."""
    found = ceilings(Rules())
    assert found.blind_step == pytest.approx(1 / 48) and found.prior_next == pytest.approx(1 / 47)
    assert (found.blind_verb, found.blind_noun) == (pytest.approx(1 / 6), pytest.approx(1 / 8))
    # after a verb four verbs may come, one of which (its own) lacks the action itself
    assert ceilings(Rules("orders")).prior_next == pytest.approx(1 / 31)
    assert ceilings(Rules("pairs", unseen=True)).blind_step == pytest.approx(1 / 12)


@pytest.mark.parametrize(
    "rules", [Rules(), Rules("orders"), Rules("orders", True), Rules("pairs"), Rules("looks", True)]
)
def test_clips_follow_the_transitions_that_ceilings_are_taken_from(rules):
    start, move = transitions(rules)
    assert start.sum() == pytest.approx(1) and np.allclose(move.sum(axis=1), 1)
    index = {action: number for number, action in enumerate(actions())}
    firsts, pairs = Counter(), Counter()
    for number in range(60):
        told = [index[s.action] for s in make_plan("a", (9, 9, number), (17, 20), rules=rules).steps]
        firsts[told[0]] += 1
        pairs.update(itertools.pairwise(told))
    assert all(start[a] > 0 for a in firsts) and all(move[a, b] > 0 for a, b in pairs)
    # the best that a guess from the step before gets on these clips is the enumerated ceiling, up to chance
    right = sum(move[a].argmax() == b for a, b in pairs.elements()) / pairs.total()
    assert abs(right - ceilings(rules).prior_next) < 0.04


def test_a_guess_without_seeing_is_near_chance_on_the_test_split():
    """The majority answer of training, on the tier small, against the enumerated blind ceiling."""
    order = Order("small")
    train, test = ([], [])
    for number in range(order.spec.clips):
        (train if number < order.spec.train else test).extend(s.action for s in order.plan(number).steps)
    majority = Counter(train).most_common(1)[0][0]
    assert test.count(majority) / len(test) < ceilings(Rules()).blind_step + 0.03


def test_full_is_planned(monkeypatch, tmp_path):
    spec = TIERS["full"]
    assert (spec.train, spec.val, spec.test, spec.clips) == (560, 80, 160, 800)
    order = Order("full")
    assert [len(order.splits[name]) for name in ("train", "val", "test")] == [560, 80, 160]
    plans = [order.plan(number) for number in range(640, 800)]
    assert all(20 <= plan.frames / plan.rate < 40.1 for plan in plans)
    assert sum(len(plan.steps) for plan in plans) > 640  # enough items to tell five points apart
    assert len({plan.seed for plan in plans}) == 160


def test_two_clips_of_full_are_made_and_gone_on_with(monkeypatch, tmp_path):
    """Like the other tiers: cut to two clips of a short length and a small size, by two processes, then once more."""
    short = tiers.Tier(train=1, val=0, test=1, seconds=(20, 21), size=64)
    monkeypatch.setitem(TIERS, "full", short)
    out = make("full", tmp_path / "a", progress=False, workers=2)
    hashes = {uid: clip["sha256"] for uid, clip in read_json(out / "manifest.json")["clips"].items()}
    assert list(hashes) == ["full-0000", "full-0001"]
    (out / "timelines/full-0001.json").unlink()
    before = (out / "videos/full-0000.mp4").stat().st_mtime_ns
    make("full", out, progress=False, workers=1)
    assert (out / "videos/full-0000.mp4").stat().st_mtime_ns == before
    assert content_hash(out / "videos/full-0001.mp4") == hashes["full-0001"]


@pytest.mark.slow
def test_clips_of_full_are_the_same_frames_twice(tmp_path):
    """Eight of the 800, as they are made: all splits, all four frame rates, easy and hard; by one process and by two."""
    order, numbers = Order("full"), (0, 5, 13, 21, 300, 562, 640, 799)
    plans = [order.plan(number) for number in numbers]
    assert len({plan.rate for plan in plans}) == 4 and {plan.hard for plan in plans} == {False, True}
    found = []
    for workers, name in ((1, "a"), (2, "b")):
        tiers._run([(order, number, tmp_path / name) for number in numbers], workers, lambda: None)
        held = [tmp_path / name / f"videos/{plan.uid}.mp4" for plan in plans]
        found.append([content_hash(path) for path in held])
        told = [read_json(tmp_path / name / f"timelines/{plan.uid}.json")["hash"] for plan in plans]
        assert told == found[-1], "the manifest's hashes are those of the decoded frames"
    assert found[0] == found[1] and len(set(found[0])) == len(numbers)


def test_a_set_with_options_is_its_own(monkeypatch, tmp_path):
    monkeypatch.setitem(TIERS, "smoke", tiers.Tier(train=1, val=0, test=1, seconds=(8, 9), size=48))
    out = make("smoke", tmp_path / "a", progress=False, workers=1, level="L4", holdout="looks")
    assert read_json(out / "manifest.json")["recipe"]["level"] == "L4"
    with pytest.raises(ConfigError, match="holds other synthetic data"):
        make("smoke", out, progress=False)
    plain = make("smoke", tmp_path / "b", progress=False, workers=1)
    assert read_json(plain / "manifest.json")["clips"] != read_json(out / "manifest.json")["clips"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "L5"}, r"unknown redundancy level 'L5'.*accepted: L0, L1, L2, L3, L4"),
        (
            {"holdout": "pair"},
            r"unknown hold-out 'pair'; did you mean 'pairs'\?; accepted: pairs, orders, looks, backgr",
        ),
    ],
)
def test_unknown_options_are_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        make("smoke", tmp_path, **options)
