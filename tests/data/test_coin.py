"""COIN as a stream of steps and as questions, its splits, and faults in the file."""

import copy
import json

import pytest

from vtskip.data import coin
from vtskip.data.dialogue import Dialogue
from vtskip.data.labels import task_words
from vtskip.errors import ConfigError, DataError

DATABASE = {
    "a": {
        "duration": 6.0, "class": "BrewLeafTea", "video_url": "", "start": 0.4, "end": 5.6, "subset": "training",
        "recipe_type": 41,
        "annotation": [
            {"id": "207", "segment": [0.6, 1.5], "label": "heat the water"},
            {"id": "209", "segment": [2.0, 3.1], "label": "process (crop, fold) paper"},
            {"id": "212", "segment": [4.0, 5.2], "label": "pour the water into the pot"},
        ],
    },
    "b": {
        "duration": 3.0, "class": "ReplaceCDDriveWithSSD", "video_url": "", "start": 0.0, "end": 3.0, "subset": "testing",
        "recipe_type": 7, "annotation": [{"id": "1", "segment": [1.0, 2.0], "label": "open the case"}],
    },
}  # fmt: skip


def read_coin(*args, **kwargs):
    return list(coin.read_coin(*args, **kwargs))


@pytest.fixture
def write(tmp_path):
    def to_file(database):
        path = tmp_path / "COIN.json"
        path.write_text(json.dumps({"database": database}))
        return path

    return to_file


def _answers(samples):
    return [(s.conversation[-1]["content"], s.frames) for s in samples]


def test_steps_are_named_when_they_start(write, clips):
    (sample,) = read_coin(write(DATABASE), clips, 2, "train", dialogue=Dialogue(system="", lead_in=True, tail=True))
    assert [t.get("content", t.get("num_frames")) for t in sample.conversation][2:] == [
        2, "Heat the water.", 2, "Crop and fold paper.", 4, "Pour the water into the pot.", 3,
    ]  # fmt: skip
    assert sample.frames == list(range(0, 60, 5)) and sample.uid == "a"


def test_questions_come_before_the_frames_of_the_segment(write, clips):
    path = write(DATABASE)
    steps = read_coin(path, clips, 2, "training", "step")
    assert _answers(steps) == [
        ("Heat the water.", [10, 15]),
        ("Crop and fold paper.", [20, 25, 30, 35]),
        ("Pour the water into the pot.", [40, 45, 50, 55]),
    ]
    assert [t["role"] for t in steps[0].conversation] == ["system", "user", "stream", "assistant"]
    coming = read_coin(path, clips, 2, "training", "next")
    assert _answers(coming) == [("Crop and fold paper.", [10, 15]), ("Pour the water into the pot.", [20, 25, 30, 35])]
    plans = read_coin(path, clips, 2, "training", "procedure")
    assert plans[0].conversation[-1]["content"] == "1. Crop and fold paper.\n2. Pour the water into the pot."
    assert plans[1].conversation == coming[1].conversation
    (task,) = read_coin(path, clips, 2, "test", "task")
    assert task.conversation[-1]["content"] == "Replace CD drive with SSD." and task.frames == [0, 10, 20, 30, 40, 50]


def test_what_the_evaluation_needs_is_beside_the_conversation(write, clips):
    path = write(DATABASE)
    plans = read_coin(path, clips, 2, "training", "procedure_goal")
    assert [s.conversation[1]["content"] for s in plans] == [
        "To brew leaf tea, what are the next 2 actions for the video? Name one action per numbered line.",
        "To brew leaf tea, what is the next action for the video? Name the action only.",
    ]
    assert [(s.meta["seen"], s.meta["labels"]) for s in plans] == [
        ("heat the water", ["crop and fold paper", "pour the water into the pot"]),
        ("crop and fold paper", ["pour the water into the pot"]),
    ]
    (task,) = read_coin(path, clips, 2, "test", "task")
    assert (task.meta["seen"], task.meta["labels"]) == (None, ["replace CD drive with SSD"])


def test_long_segments_keep_their_ends(write, clips):
    (sample,) = read_coin(write(DATABASE), clips, 10, "testing", "step", dialogue=Dialogue(max_frames=4))
    assert sample.frames == [20, 26, 34, 40]


@pytest.mark.parametrize(
    "name, words",
    [
        ("ReplaceASIMCard", "replace a SIM card"),
        ("BrewLeafTea", "brew leaf tea"),
        ("PutOnHairExtensions", "put on hair extensions"),
    ],
)
def test_task_names(name, words):
    assert task_words(name) == words


def test_splits_accept_the_names_in_use(write, clips):
    path = write(DATABASE)
    for split, uid in [("train", "a"), ("training", "a"), ("test", "b"), ("testing", "b"), ("validation", "b")]:
        assert [s.uid for s in read_coin(path, clips, 2, split)] == [uid]
    renamed = copy.deepcopy(DATABASE)
    renamed["b"]["subset"] = "validation"
    assert [s.uid for s in read_coin(write(renamed), clips, 2, "testing")] == ["b"]
    with pytest.raises(DataError, match=r"unknown split 'tesing'; did you mean 'testing'\?; accepted: .*training"):
        read_coin(path, clips, 2, "tesing")
    with pytest.raises(DataError, match="no video of split 'train'"):
        read_coin(write({"b": DATABASE["b"]}), clips, 2, "train")
    assert [s.uid for s in read_coin(write(DATABASE), clips, 2, "mine", splits={"mine": ["b"]})] == ["b"]


def _step(value, i=1):
    return value["a"]["annotation"][i]


FAULTS = {
    "past the end": (
        lambda v: _step(v).update(segment=[2.0, 60.0]),
        "step 1: 'segment' is 60.0 s, past the end .*6.00 s",
    ),
    "swapped": (
        lambda v: _step(v).update(segment=[3.0, 2.0]),
        r"step 1: 'segment' is \[3.0, 2.0\]: the start must come before",
    ),
    "not a number": (
        lambda v: _step(v).update(segment=[1.0, float("nan")]),
        "step 1: 'segment' should be a time in seconds, got nan",
    ),
    "one time": (lambda v: _step(v).update(segment=[1.0]), r"step 1: 'segment' should be \[start, end\]"),
    "no segment": (lambda v: _step(v).pop("segment"), "step 1: missing key 'segment'; present: id, label"),
    "no label": (lambda v: _step(v).pop("label"), "step 1: missing key 'label'"),
    "empty label": (lambda v: _step(v).update(label=" "), "step 1: 'label' is empty"),
    "no steps": (lambda v: v["a"].pop("annotation"), "missing key 'annotation'"),
    "no class": (lambda v: v["a"].pop("class"), "missing key 'class'"),
    "no record": (lambda v: v.update(a=3), "expected an object, got int"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_names_file_video_and_step(write, clips, fault):
    value = copy.deepcopy(DATABASE)
    spoil, message = FAULTS[fault]
    spoil(value)
    path = write(value)
    with pytest.raises(DataError, match=f"^{path}: video 'a'(, |: ){message}"):
        read_coin(path, clips, 2)
    assert [s.uid for s in read_coin(path, clips, 2, on_error="skip")] == ["b"]


def test_other_files_and_tasks(write, clips, tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(DataError, match=r"x\.json: missing key 'database'; present: none"):
        read_coin(tmp_path / "x.json", clips, 2)
    with pytest.raises(ConfigError, match="unknown COIN task 'steps'; did you mean 'step'"):
        read_coin(write(DATABASE), clips, 2, task="steps")
    missing = copy.deepcopy(DATABASE)
    del missing["a"]["subset"]
    with pytest.raises(DataError, match="video 'a': missing key 'subset'"):
        read_coin(write(missing), clips, 2, "train")
