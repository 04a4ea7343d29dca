"""Both narration files of Ego4D, and faults in them."""

import copy
import json

import pytest

from vtskip.data import ego4d, files
from vtskip.data.dialogue import Dialogue
from vtskip.errors import ConfigError, DataError, VideoError

# Not in order of time; the second pass of "a" by another annotator; "b" has a pass only.
ROWS = {
    "a": [
        [(3.21, "#C C picks up a knife"), (1.0, "#C C looks"), (2.0, "#unsure"), (5.8, "#C C cuts the #unsure")],
        [(4.4, "#O A man X waves")],
    ],
    "b": [[(0.0, "#C C waits"), (2.9, "#C C walks.")]],
}


def read_narrations(*args, **kwargs):
    return list(ego4d.read_narrations(*args, **kwargs))


def _public():
    return {
        uid: {"status": "complete"}
        | {
            f"narration_pass_{n}": {
                "narrations": [
                    {
                        "timestamp_sec": t,
                        "timestamp_frame": int(t * 30),
                        "narration_text": text,
                        "annotation_uid": f"{uid}{n}",
                    }
                    for t, text in rows
                ],
                "summaries": [],
            }
            for n, rows in enumerate(passes, 1)
        }
        for uid, passes in ROWS.items()
    }


def _redacted():
    videos = {
        uid: {
            "narrations": [
                {"time": t, "text": text, "_annotation_uid": f"{uid}{n}", "annotator": n, "is_summary": False}
                for n, rows in enumerate(passes, 1)
                for t, text in rows
            ],
            "summaries": [],
        }
        for uid, passes in ROWS.items()
    }
    return {"videos": videos, "_map_errs": {}}


@pytest.fixture
def write(tmp_path):
    def to_file(value):
        path = tmp_path / "narration.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    return to_file


@pytest.mark.parametrize("shape", [_public, _redacted])
def test_each_annotator_is_one_conversation(write, clips, shape):
    path = write(shape())
    samples = read_narrations(path, clips, 2, dialogue=Dialogue(system="", instruction="Narrate."))
    assert [s.uid for s in samples] == ["a/a1", "a/a2", "b/b1"]
    first, second, third = samples
    assert [t["content"] for t in first.conversation if "content" in t] == [
        "Narrate.", "C looks.", "C picks up a knife.", "C cuts the.",
    ]  # fmt: skip
    assert [t["num_frames"] for t in first.conversation if t["role"] == "stream"] == [1, 5, 5 - 1]
    assert first.frames == [
        10,
        15,
        20,
        25,
        30,
        35,
        40,
        45,
        50,
        55,
    ]  # from the first text at 1.0 s to 5.8 s, on the last frame
    assert second.conversation[-1]["content"] == "A man X waves." and second.frames == [45]
    assert third.frames == [0, 10, 20, 30, 40, 50]
    assert first.source == str(path) and first.video == clips / "a.mp4" and first.meta["annotator"] == "a1"


def test_both_files_of_the_synthetic_set_tell_the_same(smoke):
    def key(sample):
        return sample.uid, sample.frames, sample.conversation

    public = read_narrations(smoke / "ego4d/narration.json", smoke / "videos", 2)
    redacted = read_narrations(smoke / "ego4d/all_narrations_redacted.json", smoke / "videos", 2)
    assert len(public) == 24 and list(map(key, public)) == list(map(key, redacted))


def test_splits_and_passes(write, clips, tmp_path):
    path, lists = write(_public()), {"train": ["a", "gone"], "val": ["b"], "none": ["gone"]}
    assert [s.uid for s in read_narrations(path, clips, 2, "train", lists, passes=[1])] == ["a/a1"]
    (tmp_path / "splits.json").write_text(json.dumps(lists))
    assert [s.uid for s in read_narrations(path, clips, 2, "val", tmp_path / "splits.json")] == ["b/b1"]
    with pytest.raises(DataError, match=r"splits.json: unknown split 'vall'; did you mean 'val'\?.*train, val, none"):
        read_narrations(path, clips, 2, "vall", tmp_path / "splits.json")
    with pytest.raises(DataError, match="none of the videos of split 'none'"):
        read_narrations(path, clips, 2, "none", lists)
    with pytest.raises(ConfigError, match="needs 'splits'"):
        read_narrations(path, clips, 2, "val")
    with pytest.raises(ConfigError, match="does not tell the passes apart"):
        read_narrations(write(_redacted()), clips, 2, passes=[1])


def test_long_videos_are_cut(write, clips):
    parts = read_narrations(
        write(_public()), clips, 2, passes=[1], dialogue=Dialogue(max_frames=5, lead_in=True, tail=True)
    )
    assert [p.uid for p in parts] == ["a/a1#0", "a/a1#1", "a/a1#2", "b/b1#0", "b/b1#1"]
    assert all(len(p.frames) <= 5 for p in parts) and [p.meta["first_frame"] for p in parts[:3]] == [0, 5, 10]


def _narration(value, i=1):
    return value["a"]["narration_pass_1"]["narrations"][i]


FAULTS = {
    "past the end": (
        lambda v: _narration(v).update(timestamp_sec=99.5),
        r"'timestamp_sec' is 99.5 s, past the end .*6.00 s",
    ),
    "negative": (lambda v: _narration(v).update(timestamp_sec=-0.1), "times start at 0"),
    "not a number": (lambda v: _narration(v).update(timestamp_sec=float("nan")), "a time in seconds, got nan"),
    "text as time": (lambda v: _narration(v).update(timestamp_sec="1:30"), "a time in seconds, got '1:30'"),
    "no time": (
        lambda v: _narration(v).pop("timestamp_sec"),
        "missing key 'timestamp_sec'; did you mean 'timestamp_frame'",
    ),
    "no text": (lambda v: _narration(v).pop("narration_text"), "missing key 'narration_text'"),
    "wrong text": (lambda v: _narration(v).update(narration_text=None), "'narration_text' should be str, got None"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_names_file_video_and_row(write, clips, fault, caplog):
    value = copy.deepcopy(_public())
    spoil, message = FAULTS[fault]
    spoil(value)
    path = write(value)
    with pytest.raises(DataError, match=f"^{path}: video 'a', narration_pass_1, narration 1: .*{message}"):
        read_narrations(path, clips, 2)
    assert [s.uid for s in read_narrations(path, clips, 2, on_error="skip")] == ["b/b1"]
    assert "1 videos skipped, 1 samples" in caplog.text and "narration 1" in caplog.text


def test_a_time_up_to_one_model_frame_over_the_end_is_the_last_frame(write, clips):
    value = _public()
    _narration(value, 3)["timestamp_sec"] = 6.4
    assert read_narrations(write(value), clips, 2, passes=[1])[0].frames[-1] == 55


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not valid JSON: expected a key"),
        ('{"a": {"status": "complete"}', "not valid JSON: expected ',' behind 'a', got ''"),
        ('{"a": {"status": "complete"}} x', "not valid JSON: something follows"),
        ('{"a": {"status": ""}, "a": {}}', "video 'a' is there twice"),
        ('["a"]', r"expected an object, got '\["),
        (" ", "expected an object, got ''"),
        ('{"a": {}}', "not an Ego4D narration file"),
    ],
)
def test_files_of_another_shape(write, clips, content, message):
    path = write(content)
    with pytest.raises(DataError, match=f"{path}: {message}"):
        read_narrations(path, clips, 2)


def test_a_large_file_is_read_video_by_video(write, clips, monkeypatch):
    """A thousand videos, of which two are asked for: no more of the text is held than a video and a piece."""
    values = {f"v{i}": copy.deepcopy(_public()["b"]) for i in range(1000)} | _public()
    path, held = write(values), []
    monkeypatch.setattr(files, "CHUNK", 512)
    more = files._Pieces.more
    monkeypatch.setattr(files._Pieces, "more", lambda pieces: (more(pieces), held.append(len(pieces.text)))[0])
    samples = read_narrations(path, clips, 2, "train", {"train": ["b", "a"]})
    assert [s.uid for s in samples] == ["a/a1", "a/a2", "b/b1"]
    assert len(held) > 500 and max(held) < 4000 < path.stat().st_size / 50


@pytest.mark.parametrize("piece", range(1, 12))
def test_members_of_an_object_in_pieces_of_any_size(tmp_path, monkeypatch, piece):
    """Numbers, escapes and words are cut at every place; what stands under one key is told member by member."""
    value = {"date": 220817, "x": -1.5e-07, "y": 1e22, 'é"}': [True, None, {"a": "\U0001f373 \\"}], "z": False}
    value |= {"videos": {"a": {"videos": 12.25}, "b": 3, "": []}, "_map_errs": {}, "last": 0.125}
    path = tmp_path / "a.json"
    monkeypatch.setattr(files, "CHUNK", piece)
    told = [(False, key, one) for key, one in value.items() if key != "videos"]
    inner = [(True, key, one) for key, one in value["videos"].items()]
    for indent in (None, 1):
        path.write_text(json.dumps(value, indent=indent, ensure_ascii=piece % 2 == 0), encoding="utf-8")
        found = list(files.read_members(path, "videos"))
        assert found == [*told[:5], *inner, *told[5:]]


def test_missing_files(write, clips, tmp_path):
    with pytest.raises(DataError, match=r"none.json: cannot be read \(No such file"):
        read_narrations(tmp_path / "none.json", clips, 2)
    value = _public()
    value["c"] = value.pop("a")
    with pytest.raises(VideoError, match=r"c.mp4: no such video \(looked for .mp4, .mkv"):
        read_narrations(write(value), clips, 2)
    with pytest.raises(DataError, match=r"every video was skipped; the first fault: .*no such video"):
        read_narrations(write(value), tmp_path, 2, on_error="skip")
