"""The generated data set: the same on every run, true to its plan, legible, and not to be guessed from the texts."""

import itertools
import json
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from vtskip.data.files import read_json
from vtskip.data.synthetic import TIERS, make
from vtskip.data.synthetic.encode import content_hash
from vtskip.data.synthetic.grammar import COLOURS, SHAPES, VERBS, actions
from vtskip.data.synthetic.plan import make_plan
from vtskip.data.synthetic.render import Renderer
from vtskip.data.synthetic.tiers import splits_of
from vtskip.data.video import probe, read_frames
from vtskip.errors import ConfigError, DataError


def _hashes(folder):
    return {uid: clip["sha256"] for uid, clip in read_json(folder / "manifest.json")["clips"].items()}


def test_a_seed_gives_the_same_frames_and_texts_whatever_the_processes(smoke, tmp_path):
    again = make("smoke", tmp_path / "again", seed=0, progress=False, workers=1)
    assert len(_hashes(smoke)) == 12 and len(set(_hashes(smoke).values())) == 12
    for name in ("manifest.json", "splits.json", "coin/COIN.json", "coin/taxonomy.csv", "ego4d/narration.json"):
        assert (again / name).read_bytes() == (smoke / name).read_bytes()
    uid = "smoke-0003"
    assert content_hash(again / "videos" / f"{uid}.mp4") == _hashes(smoke)[uid]
    assert [s.action for s in make_plan(uid, (1, 0, 3), (8, 12)).steps] != [
        s.action for s in make_plan(uid, (0, 0, 3), (8, 12)).steps
    ]


def test_an_interrupted_run_goes_on_and_keeps_what_is_there(smoke, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr("vtskip.data.synthetic.tiers.content_hash", _fail_at_the_fourth())
    with pytest.raises(DataError, match="disk full"):
        make("smoke", out, progress=False, workers=1)
    assert not (out / "manifest.json").exists() and not list(out.rglob("*.part"))
    finished = {path: path.stat().st_mtime_ns for path in (out / "timelines").iterdir()}
    assert len(finished) == 3
    (out / "timelines" / "smoke-0001.json").write_text("{half")
    monkeypatch.undo()
    make("smoke", out, progress=False, workers=2)
    assert _hashes(out) == _hashes(smoke)
    kept = {path for path, time in finished.items() if path.stat().st_mtime_ns == time}
    assert {path.stem for path in kept} == {"smoke-0000", "smoke-0002"}
    (out / "videos" / "smoke-0005.mp4").unlink()
    make("smoke", out, progress=False)
    assert content_hash(out / "videos" / "smoke-0005.mp4") == _hashes(smoke)["smoke-0005"]
    before = (out / "manifest.json").stat().st_mtime_ns
    make("smoke", out, progress=False)
    assert (out / "manifest.json").stat().st_mtime_ns == before


def _fail_at_the_fourth():
    calls = []

    def hashing(path):
        calls.append(path)
        if len(calls) == 4:
            raise OSError(28, "disk full")
        return content_hash(path)

    return hashing


def test_refusals(smoke, tmp_path):
    with pytest.raises(ConfigError, match=r"unknown tier 'smal'; did you mean 'small'\?; accepted: smoke, small, full"):
        make("smal", tmp_path)
    with pytest.raises(ConfigError, match="seed -1"):
        make("smoke", tmp_path, seed=-1)
    with pytest.raises(ConfigError, match="holds other synthetic data"):
        make("smoke", smoke, seed=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        make("smoke", tmp_path / "file", progress=False, workers=1)


def test_clips_are_what_the_manifest_says(smoke):
    clips = read_json(smoke / "manifest.json")["clips"]
    for uid, clip in clips.items():
        info = probe(smoke / "videos" / f"{uid}.mp4")
        assert (info.frames, info.fps) == (clip["frames"], Fraction(clip["fps"])) and 8 <= info.duration <= 12
    splits = read_json(smoke / "splits.json")
    assert sorted(uid for names in splits.values() for uid in names) == sorted(clips)
    coin = read_json(smoke / "coin/COIN.json")["database"]
    assert {uid for uid, record in coin.items() if record["subset"] == "testing"} == set(splits["test"])


def test_both_annotations_have_the_contact_frame(smoke):
    ego = read_json(smoke / "ego4d/narration.json")
    coin = read_json(smoke / "coin/COIN.json")["database"]
    for path in (smoke / "timelines").iterdir():
        line = json.loads(path.read_text())
        contacts = [step["contact"] for step in line["steps"]]
        first = ego[line["uid"]]["narration_pass_1"]["narrations"]
        assert [n["timestamp_frame"] for n in first] == contacts
        assert [round(n["timestamp_sec"] * 10) for n in first] == contacts
        steps = coin[line["uid"]]["annotation"]
        assert [round(s["segment"][0] * 10) for s in steps] == contacts
        assert all(s["segment"][0] < s["segment"][1] <= line["frames"] / 10 for s in steps)
        assert [n["narration_text"].split(" the ")[1] for n in first] == [s["label"].split(" the ")[1] for s in steps]


def test_the_second_pass_is_another_annotator(smoke):
    """Shifted by at most 0.4 s, other words, remarks on other people, some steps missing."""
    ego = read_json(smoke / "ego4d/narration.json").values()
    first, second = ([n for r in ego for n in r[f"narration_pass_{k}"]["narrations"]] for k in (1, 2))
    own = [n for n in second if n["narration_text"].startswith("#C")]
    assert len(second) - len(own) == 24 and 0.75 * len(first) < len(own) < len(first)
    assert not {n["narration_text"] for n in first} & {n["narration_text"] for n in second}
    times = np.array([n["timestamp_sec"] for n in first])
    assert max(np.abs(times - n["timestamp_sec"]).min() for n in own) <= 0.4 + 1e-9


def _small_plans():
    tier = TIERS["small"]
    return [make_plan(str(i), (0, 1, i), tier.seconds) for i in range(tier.clips)]


def test_words_are_near_uniform_and_the_next_is_not_to_be_guessed():
    """Over the small tier: no word is frequent, and the best guess from the narration before is near chance."""
    plans = _small_plans()
    told = [[s.action for s in plan.steps] for plan in plans]
    every = [action for steps in told for action in steps]
    assert len(every) > 550
    for field, words in (("verb", VERBS), ("colour", COLOURS), ("shape", SHAPES)):
        counts = Counter(getattr(action, field) for action in every)
        assert set(counts) == set(words)
        expected = len(every) / len(words)
        assert sum((n - expected) ** 2 / expected for n in counts.values()) < 4 * len(words)
    pairs = Counter((a.verb, b.verb) for steps in told for a, b in itertools.pairwise(steps))
    best = sum(max(pairs[a, b] for b in VERBS) for a in VERBS) / pairs.total()
    assert best < 1 / len(VERBS) + 0.09


def test_gaps_vary_and_every_step_shows_on_the_two_hertz_grid():
    gaps, idle = [], 0
    for plan in _small_plans():
        contacts = [math.ceil(s.contact / 5) for s in plan.steps]
        assert all(5 * k < s.end for k, s in zip(contacts, plan.steps)) and len(set(contacts)) == len(contacts)
        assert all(a.away <= b.approach for a, b in zip(plan.steps, plan.steps[1:]))
        gaps += list(np.diff(contacts))
        idle += len(range(0, plan.frames, 5)) - len(contacts)
    assert min(gaps) >= 3 and max(gaps) >= 9 and np.std(gaps) > 1.2
    assert idle > 4 * len(gaps)  # silence is the usual answer


@pytest.mark.parametrize("verb", VERBS)
def test_contact_changes_the_picture_at_once(verb):
    """At 96 pixels the contact frame differs clearly from the frame before it; the frames before hardly differ."""
    jumps, idle = [], []
    for i in range(12):
        plan = make_plan(str(i), (5, 0, i), (8, 12))
        renderer = Renderer(plan, 96)
        for step in (s for s in plan.steps if s.action.verb == verb):
            before, touch = (renderer.frame(t).astype(int) for t in (step.approach - 1, step.contact))
            jumps.append((np.abs(touch - before).max(axis=2) > 40).mean())
            idle.append((np.abs(renderer.frame(step.approach - 2).astype(int) - before).max(axis=2) > 40).mean())
    assert len(jumps) >= 3 and min(jumps) > 0.05
    assert np.median(idle) < 0.01


def test_background_is_independent_of_the_steps():
    """The table is drawn from its own random stream: same plan words, other tables; and both differ from clip to clip."""
    tables = [Renderer(plan, 32).background.mean(axis=(0, 1)) for plan in _small_plans()[:40]]
    first = [plan.steps[0].action for plan in _small_plans()[:40]]
    means = np.array(tables).mean(axis=1)
    assert means.std() > 10
    for colour in COLOURS:
        chosen = means[[a.colour == colour for a in first]]
        assert abs(chosen.mean() - means.mean()) < 3 * means.std() / math.sqrt(len(chosen))


def test_splits_and_labels_are_complete():
    for name, tier in TIERS.items():
        lists = splits_of(name, tier)
        assert [len(lists[s]) for s in ("train", "val", "test")] == [tier.train, tier.val, tier.test]
        assert len({uid for uids in lists.values() for uid in uids}) == tier.clips
    assert len({a.label for a in actions()}) == len(VERBS) * len(COLOURS) * len(SHAPES)
    assert (TIERS["smoke"].clips, TIERS["small"].clips) == (12, 120)


def test_frames_survive_the_encoder(smoke):
    """What is read at 2 frames per second is what was drawn, up to compression."""
    uid = "smoke-0002"
    line = read_json(smoke / "timelines" / f"{uid}.json")
    plan = make_plan(uid, tuple(line["seed"]), TIERS["smoke"].seconds)
    drawn = np.stack([Renderer(plan, line["size"]).frame(t) for t in (0, 25, 50)]).astype(int)
    read = read_frames(smoke / "videos" / f"{uid}.mp4", [0, 25, 50]).astype(int)
    assert np.abs(drawn - read).mean() < 4
