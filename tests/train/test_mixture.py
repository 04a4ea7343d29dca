"""What an epoch shows: data sets in their weights, and replies gone wrong."""

from itertools import pairwise
from pathlib import Path

import pytest

from vtskip.config import parse
from vtskip.data.types import Sample
from vtskip.errors import ConfigError
from vtskip.train import TrainConfig
from vtskip.train.mixture import augmented, training_samples, weighted
from vtskip.train.sections import Augment


def stream(uid: str) -> Sample:
    """Two narrations and a silent end."""
    turns = [
        {"role": "system", "content": "You see it."},
        {"role": "stream", "num_frames": 4, "learn": True},
        {"role": "assistant", "content": f"first {uid}", "learn": True},
        {"role": "stream", "num_frames": 3, "learn": True},
        {"role": "assistant", "content": f"second {uid}", "learn": True},
        {"role": "stream", "num_frames": 2, "learn": True},
    ]
    return Sample(uid, Path("a.mp4"), 2, list(range(9)), turns)


SAMPLES = [stream(f"clip{i}") for i in range(200)]


def texts(sample):
    return [t["content"] for t in sample.conversation if t["role"] == "assistant"]


def test_weights_are_how_often_a_conversation_comes():
    some = SAMPLES[:10]
    assert weighted(some, 1, 0) == some and weighted(some, 2, 0) == some * 2
    half, more = weighted(some, 0.5, 0), weighted(some, 1.3, 0)
    assert len(half) == 5 and len({s.uid for s in half}) == 5 and len(more) == 13
    assert half == weighted(some, 0.5, 0) and half != weighted(some, 0.5, 1)


def test_a_list_of_data_sets_is_read_in_their_weights(values):
    one = dict(values["data"])
    both = values | {"data": [one, one | {"task": "step", "weight": 2, "split": "test", "lead_in": False}]}
    both["data"][1].pop("instruction")
    config = parse(TrainConfig, both, "test")
    samples = training_samples(config, progress=False)
    first = training_samples(parse(TrainConfig, values, "test"), progress=False)
    assert samples[: len(first)] == first
    rest = samples[len(first) :]
    assert rest and rest[: len(rest) // 2] == rest[len(rest) // 2 :]


def test_replies_go_wrong_as_often_as_asked_and_the_same_ones_each_time():
    found = augmented(SAMPLES, Augment(wrong=0.3, silent=0.2), seed=1)
    assert found == augmented(SAMPLES, Augment(wrong=0.3, silent=0.2), seed=1)
    assert found != augmented(SAMPLES, Augment(wrong=0.3, silent=0.2), seed=2)
    changed = [(old, new) for old, new in zip(SAMPLES, found) if old != new]
    assert 70 < len(changed) < 130
    assert augmented(SAMPLES, Augment(), seed=1) == SAMPLES


def kinds(apology=""):
    """Changed samples by what happened: (wrong or silent, corrected)."""
    found = {}
    for wrong in (True, False):
        augment = Augment(wrong=float(wrong), silent=float(not wrong), apology=apology)
        for old, new in zip(SAMPLES, augmented(SAMPLES, augment, seed=0)):
            corrected = any(t.endswith(old.conversation[2]["content"]) for t in texts(new))
            found.setdefault((wrong, corrected), []).append((old, new))
    return found


def test_a_wrong_reply_is_never_learned_and_frames_stay():
    found = kinds()
    assert found.keys() == {(True, True), (True, False), (False, True), (False, False)}
    for (wrong, corrected), pairs in found.items():
        assert len(pairs) > 60
        for old, new in pairs:
            assert sum(t.get("num_frames", 0) for t in new.conversation) == len(new.frames) == 9
            assert texts(new)[-1] == texts(old)[-1]  # the last reply is what it was
            strange = [t for t in new.conversation if t["role"] == "assistant" and t["content"] not in texts(old)]
            assert len(strange) == wrong and not any(t["learn"] for t in strange)
            roles = [t["role"] for t in new.conversation]
            assert not any(a == b == "stream" for a, b in pairwise(roles))
            lengths = [t["num_frames"] for t in new.conversation if t["role"] == "stream"]
            taught = [t["learn"] for t in new.conversation if t["role"] == "stream"]
            assert (lengths, taught) == {
                (True, True): ([4, 1, 2, 2], [True, True, True, True]),
                (True, False): ([4, 3, 2], [True, False, True]),
                (False, True): ([5, 2, 2], [False, True, True]),
                (False, False): ([7, 2], [False, True]),
            }[wrong, corrected]


def test_an_apology_stands_before_a_correction_alone():
    found = kinds(apology="(Sorry, the last response is wrong)")
    for old, new in found[True, True]:
        assert f"(Sorry, the last response is wrong) {texts(old)[0]}" in texts(new)
    assert not [1 for _, new in found[False, True] if any("Sorry" in t for t in texts(new))]


def test_more_than_all_is_refused(values):
    with pytest.raises(ConfigError, match=r"augment: .*wrong 0.7 and silent 0.6 are more than all"):
        parse(TrainConfig, values | {"augment": {"wrong": 0.7, "silent": 0.6}}, "test")
