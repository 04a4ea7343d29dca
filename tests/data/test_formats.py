"""Hand-made files in every published format: what they say is what the samples say."""

import json
import math

import pytest

from tests.data import formats
from vtskip.data import build
from vtskip.data.egoexo import read_atomic, read_keysteps
from vtskip.data.goalstep import read_goalstep
from vtskip.data.lta import read_lta
from vtskip.data.timeline import frame_at
from vtskip.errors import DataError, VideoError

CASES = ["coin"] * 6 + ["ego4d_narration"] * 3 + ["goalstep", "ego4d_lta"] + ["egoexo_atomic"] * 2
CASES += ["egoexo_keystep", "llava", "messages"]


def texts(sample, role="assistant"):
    return [turn["content"] for turn in sample.conversation if turn["role"] == role]


def marks(sample):
    """Source frame on which each reply stands."""
    shown, found = 0, []
    for turn in sample.conversation:
        shown += turn.get("num_frames", 0)
        if turn["role"] == "assistant":
            found.append(sample.frames[shown - 1])
    return found


@pytest.mark.parametrize("number, kind", list(enumerate(CASES)), ids=lambda v: str(v))
def test_every_format_as_published_loads(tmp_path, media, number, kind):
    one = list(formats.formats(tmp_path))[number]
    assert one.kind == kind
    samples = build(one.config(one.write(tmp_path), media))
    assert len(samples) == one.samples and len({s.uid for s in samples}) == one.samples
    for sample in samples:
        assert sample.source == str(tmp_path / one.name) and sample.meta["video_uid"]
        assert sum(len(indices) for _, indices in sample.clips) == len(sample.frames)
    with pytest.raises(VideoError, match=str(tmp_path)):
        build(one.config(one.write(tmp_path), tmp_path / "nothing"))


def test_all_formats_are_tried(tmp_path):
    assert [f.kind for f in formats.formats(tmp_path)] == CASES


def one_of(tmp_path, media, name, **more):
    (found,) = [f for f in formats.formats(tmp_path) if f.name == name]
    return build(one_of_config(found, tmp_path, media, more))


def one_of_config(found, tmp_path, media, more):
    return found.config(found.write(tmp_path), media, **more)


def test_redacted_narrations_are_sorted_and_cleaned(tmp_path, media):
    (sample,) = one_of(tmp_path, media, "all_narrations_redacted.json")
    assert texts(sample) == ["C looks around.", "C picks up a knife."] and marks(sample) == [15, 35]


def test_goalstep_tells_steps_and_substeps_as_they_start(tmp_path, media):
    (sample,) = one_of(tmp_path, media, "goalstep_train.json")
    assert texts(sample) == ["Chop the cucumber.", "Peel the cucumber.", "Look at the phone."]
    assert marks(sample) == [10, 20, 45] and sample.meta["class"] == "COOKING:MAKE_SALAD"
    path = tmp_path / "goalstep_train.json"
    steps = list(read_goalstep(path, media, 2, level="steps", relevance=["essential", "optional"]))
    assert [texts(s) for s in steps] == [["Chop the cucumber."]]
    assert [texts(s) for s in read_goalstep(path, media, 2, level="substeps")] == [["Peel the cucumber."]]


def test_a_substep_that_starts_with_its_step_is_told(tmp_path, media):
    value = json.loads(json.dumps(formats.GOALSTEP))
    value["videos"][0]["segments"][0]["segments"][0]["start_time"] = 1.0
    (tmp_path / "g.json").write_text(json.dumps(value))
    (sample,) = read_goalstep(tmp_path / "g.json", media, 2)
    assert texts(sample) == ["Peel the cucumber.", "Look at the phone."]


def test_goalstep_s_unannotated_file_says_so(tmp_path, media):
    path = tmp_path / "goalstep_test_unannotated.json"
    path.write_text(json.dumps({"videos": [{"video_uid": "a", "step_segments": [{"step_description": "chop"}]}]}))
    with pytest.raises(DataError, match=f"{path}: videos 0: 'step_segments' have no times"):
        list(read_goalstep(path, media, 2))


def test_lta_windows_move_on_by_one_in_the_order_of_action_idx(tmp_path, media):
    first, second = one_of(tmp_path, media, "fho_lta_train.json")
    assert [first.uid, second.uid] == ["c9_1", "c9_2"] and first.meta["last_visible_action_idx"] == 1
    # actions 0 and 1 take 0.5 + 0 to 0.5 + 0.9 s: to the nearest of 2 frames a second, 1 to 3
    assert first.frames == [5, 10, 15] and frame_at(1.4, 2, "round") == 3 == math.ceil(1.4 * 2)
    assert second.frames == [10, 15, 20] and frame_at(0.5 + 1.4, 2, "round") == 4
    assert texts(first) == ["1. Cut pot."] and texts(second) == ["1. Turn-on cucumber."]
    assert (first.meta["verb_labels"], first.meta["noun_labels"]) == ([0], [2])
    assert texts(first, "user") == [
        "After these 3 frames, what are the next 1 actions? Name one action per numbered line."
    ]


def test_lta_rounds_where_the_others_go_up(tmp_path, media):
    value = {"clips": [dict(clip, action_clip_start_sec=0.2) for clip in formats.LTA["clips"]]}
    (tmp_path / "lta.json").write_text(json.dumps(value))
    (tmp_path / "taxonomy.json").write_text(json.dumps(formats.LTA_TAXONOMY))
    sample = next(read_lta(tmp_path / "lta.json", media, 2, tmp_path / "taxonomy.json", seen=2, ahead=1))
    assert sample.meta["first_frame"] == 1 == frame_at(0.7, 2, "round") and frame_at(0.7, 2) == 2


def test_lta_without_labels_asks_and_does_not_answer(tmp_path, media):
    labels = ("verb", "noun", "verb_label", "noun_label")
    clips = [{k: v for k, v in clip.items() if k not in labels} for clip in formats.LTA["clips"]]
    (tmp_path / "lta.json").write_text(json.dumps({"clips": clips}))
    (tmp_path / "taxonomy.json").write_text(json.dumps(formats.LTA_TAXONOMY))
    samples = list(read_lta(tmp_path / "lta.json", media, 2, tmp_path / "taxonomy.json", seen=2, ahead=1))
    assert [s.conversation[-1]["role"] for s in samples] == ["stream", "stream"]
    assert "verb_labels" not in samples[0].meta and samples[0].meta["clip_uid"] == "c9"
    assert not list(read_lta(tmp_path / "lta.json", media, 2, tmp_path / "taxonomy.json"))  # 28 actions are needed


def test_atomic_descriptions_of_the_wearer_s_view(tmp_path, media):
    (sample,) = one_of(tmp_path, media, "atomic_descriptions_train.json")
    assert texts(sample) == ["C looks around.", "C opens the jar with his right hand."]
    assert sample.video == media / "lab_cooking_03/frame_aligned_videos/aria01_214-1.mp4"
    assert sample.meta["class"] == "Cooking" and marks(sample) == [15, 50]
    path = tmp_path / "atomic_descriptions_train.json"
    (everything,) = read_atomic(path, media, 2, ego_visible=False)
    assert len(texts(everything)) == 2 and texts(everything)[-1] == "O walks behind."  # both on the frame at 5.0 s
    assert everything.video == media / "t1.mp4"


def test_keysteps_take_the_description_or_the_name(tmp_path, media):
    (sample,) = one_of(tmp_path, media, "keystep_train.json")
    assert texts(sample) == ["Get a kettle.", "Boil water in the kettle."] and marks(sample) == [10, 30]
    assert sample.meta["class"] == "Making Tea"


def test_ego_exo_s_splits_file(tmp_path, media):
    path = tmp_path / "keystep_train.json"
    path.write_text(json.dumps(formats.KEYSTEPS))
    lists = {"take_uid_to_benchmark": {"t1": ["keystep"]}, "split_to_take_uids": {"train": ["t1"], "val": []}}
    (tmp_path / "splits.json").write_text(json.dumps(lists))
    assert len(list(read_keysteps(path, media, 2, split="train", splits=tmp_path / "splits.json"))) == 1
    with pytest.raises(DataError, match="none of the videos of split 'val'"):
        list(read_keysteps(path, media, 2, split="val", splits=tmp_path / "splits.json"))


def test_a_take_without_its_video_names_the_places(tmp_path, media):
    (tmp_path / "k.json").write_text(json.dumps(formats.KEYSTEPS))
    (tmp_path / "takes.json").write_text(json.dumps(formats.TAKES))
    with pytest.raises(VideoError, match=r"t1.mp4: no such video .*lab_cooking_03/frame_aligned_videos/aria01_214-1"):
        list(read_keysteps(tmp_path / "k.json", tmp_path, 2, takes=tmp_path / "takes.json"))
