"""GoalStep, LTA and Ego-Exo4D files of the generated set: the readers of the true formats give the timeline back."""

import json

import pytest

from vtskip.data.egoexo import read_atomic, read_keysteps
from vtskip.data.files import read_json
from vtskip.data.goalstep import read_goalstep
from vtskip.data.lta import read_lta, read_taxonomy
from vtskip.data.synthetic import make
from vtskip.data.synthetic.export_ego import goalstep_segments, groups_of, join
from vtskip.data.synthetic.grammars import action_of, grammar_of
from vtskip.data.synthetic.plan import make_plan
from vtskip.data.timeline import clean_text
from vtskip.data.video import read_frames
from vtskip.errors import DataError

RATE = 10  # the clips' own: every source frame is a model frame


def _replies(sample):
    """(source frame, text) of every reply."""
    found, at = [], -1
    for turn in sample.conversation:
        if turn["role"] == "stream":
            at += turn["num_frames"]
        elif turn["role"] == "assistant":
            found.append((sample.frames[at], turn["content"]))
    return found


@pytest.fixture(scope="module")
def lines(smoke):
    return {path.stem: read_json(path) for path in sorted((smoke / "timelines").iterdir())}


def visits(line):
    return [visit.acts for visit in grammar_of(line).visits(line)]


def _told(steps, moment, text):
    return [(step[moment], clean_text(text(step))) for step in steps]


def _folded(marks):
    """A text that equals the one before it is not told again."""
    return [mark for i, mark in enumerate(marks) if i == 0 or marks[i - 1][1] != mark[1]]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_goalstep_gives_the_timeline_back(smoke, lines, split):
    path = smoke / f"ego4d/goalstep_{split}.json"
    sub = {s.uid: _replies(s) for s in read_goalstep(path, smoke / "videos", RATE, level="substeps")}
    assert sorted(sub) == read_json(smoke / "splits.json")[split]
    for uid, replies in sub.items():
        assert replies == _told(lines[uid]["steps"], "contact", lambda s: action_of(s).label)
    essential = read_goalstep(path, smoke / "videos", RATE, level="steps", relevance=["essential", "optional"])
    for sample in essential:
        first = [group[0] for group in visits(lines[sample.uid])]
        told = _told(first, "approach", lambda s: f"work on the {s['colour']} {s['shape']}")
        assert _replies(sample) == _folded(told)


def test_movements_of_the_empty_hand_are_irrelevant_steps(smoke, lines):
    fidgets = {uid: make_plan(uid, tuple(line["seed"]), (8, 12)).fidgets for uid, line in lines.items()}
    assert sum(map(len, fidgets.values())) >= 2
    for split, uids in read_json(smoke / "splits.json").items():
        for video in read_json(smoke / f"ego4d/goalstep_{split}.json")["videos"]:
            marked = [s for s in video["segments"] if s["is_relevant"] == "irrelevant"]
            assert [(round(s["start_time"] * 10), round(s["end_time"] * 10)) for s in marked] == fidgets[
                video["video_uid"]
            ]
            assert video["video_uid"] in uids
            assert {s["is_relevant"] for s in video["segments"] for s in s["segments"]} <= {"essential", "optional"}


def test_visits_join_what_is_done_to_one_thing():
    def step(verb, colour, contact):
        moments = {"approach": contact - 3, "contact": contact, "end": contact + 8, "away": contact + 12}
        return {"verb": verb, "colour": colour, "shape": "cup"} | moments

    line = {"uid": "a", "fps": "10", "frames": 200, "steps": [
        step("cut", "red", 10), step("pick", "red", 30), step("wipe", "red", 50), step("shake", "blue", 70)
    ]}  # fmt: skip
    assert [[s["contact"] for s in group] for group in visits(line)] == [[10, 30], [50], [70]]
    rows = goalstep_segments(line, [(62, 66)])
    assert [(r["start_time"], r["is_relevant"], len(r["segments"])) for r in rows] == [
        (0.7, "essential", 2), (4.7, "essential", 1), (6.2, "irrelevant", 0), (6.7, "optional", 1)
    ]  # fmt: skip


def test_test_files_without_annotations_hold_no_answers(smoke):
    with pytest.raises(DataError, match="no times"):
        list(read_goalstep(smoke / "ego4d/goalstep_test_unannotated.json", smoke / "videos", 2))
    hidden = read_json(smoke / "ego4d/fho_lta_test_unannotated.json")["clips"]
    full = read_json(smoke / "ego4d/fho_lta_test.json")["clips"]
    assert len(hidden) == len(full) and all(row["clip_id"] == i for i, row in enumerate(hidden))
    assert not {key for row in hidden for key in row} & {"verb", "noun", "verb_label", "noun_label"}


def test_lta_gives_the_joined_timelines_back(smoke, lines):
    files = smoke / "ego4d"
    long = files / "long"
    train = read_json(smoke / "splits.json")["train"]
    groups = groups_of([lines[uid] for uid in train], least=28)
    joined = [join(group, f"train-{i:03d}") for i, group in enumerate(groups)]
    assert sum(len(line["steps"]) for line in joined) == sum(len(lines[uid]["steps"]) for uid in train)
    samples = list(read_lta(files / "fho_lta_train.json", long, RATE, files / "fho_lta_taxonomy.json", seen=4, ahead=3))
    assert len(samples) == sum(len(line["steps"]) - 6 for line in joined) >= 10
    first = joined[0]["steps"]
    for i, sample in enumerate(samples[:10]):
        assert sample.frames[0] == first[i]["contact"] and sample.frames[-1] == first[i + 3]["end"]
        told = [a.verb + " " + a.noun for a in map(action_of, first[i + 4 : i + 7])]
        answer = sample.conversation[-1]["content"].lower().replace("pick up", "pick")
        assert answer == "\n".join(f"{n}. {text}." for n, text in enumerate(told, 1))
    taxonomy = read_taxonomy(files / "fho_lta_taxonomy.json")
    assert (len(taxonomy.verbs), len(taxonomy.nouns)) == (6, 8)
    assert any("_(" in name for name in taxonomy.verbs) and any("_(" in name for name in taxonomy.nouns)


def test_joined_videos_are_the_clips_frame_for_frame(smoke, lines):
    train = read_json(smoke / "splits.json")["train"]
    a, b = lines[train[0]]["frames"], lines[train[1]]["frames"]
    video = smoke / "ego4d/long/train-000.mp4"
    second = read_frames(smoke / f"videos/{train[1]}.mp4", [0, 7, b - 1])
    assert (read_frames(video, [a, a + 7, a + b - 1]) == second).all()
    assert (read_frames(video, [a - 1]) == read_frames(smoke / f"videos/{train[0]}.mp4", [a - 1])).all()
    import av

    with av.open(str(video)) as held:
        times = [float(p.pts * p.time_base) for p in held.demux(video=0) if p.pts is not None]
    total = sum(lines[uid]["frames"] for uid in train)
    assert times == pytest.approx([k / RATE for k in range(total)])


def test_groups_have_enough_actions_and_lose_no_clip():
    lines = [{"uid": str(i), "fps": "10", "steps": [{}] * n} for i, n in enumerate((9, 9, 9, 9, 30, 5))]
    assert [[line["uid"] for line in group] for group in groups_of(lines, 28)] == [["0", "1", "2", "3"], ["4", "5"]]
    assert groups_of(lines[:1], 28) == [lines[:1]] and groups_of([], 28) == []
    lines[1]["fps"] = lines[5]["fps"] = "25/2"
    assert [[line["uid"] for line in group] for group in groups_of(lines, 28)] == [["0", "2", "3", "4"], ["1", "5"]]


def test_ego_exo_gives_the_timeline_back(smoke, lines):
    place = smoke / "egoexo/annotations"
    for split, uids in read_json(smoke / "splits.json").items():
        atomic = list(
            read_atomic(
                place / f"atomic_descriptions_{split}.json", smoke / "videos", RATE, smoke / "egoexo/takes.json"
            )
        )
        exact = {s.meta["video_uid"]: _replies(s) for s in atomic if s.meta["annotator"] == "0"}
        for uid in uids:
            told = _told(lines[uid]["steps"], "contact", lambda s: action_of(s).narration)
            assert exact[uid] == told
        assert all(not text.startswith(("X", "A ")) for s in atomic for _, text in _replies(s))
        keysteps = read_keysteps(place / f"keystep_{split}.json", smoke / "videos", RATE, smoke / "egoexo/takes.json")
        for sample in keysteps:
            groups = visits(lines[sample.uid])
            assert [frame for frame, _ in _replies(sample)] == [group[0]["approach"] for group in groups]
            for (_, text), group in zip(_replies(sample), groups, strict=True):
                assert all(action_of(s).label in text for s in group)
    assert {s.meta["class"] for s in atomic} == {"Working at the table"}


def test_the_second_annotator_tells_of_others_out_of_sight(smoke):
    value = read_json(smoke / "egoexo/annotations/atomic_descriptions_train.json")["annotations"]
    second = [d for passes in value.values() for d in passes[1]["descriptions"]]
    assert {d["subject"] for d in second} == {"C", "O"}
    assert all(d["ego_visible"] == (d["subject"] == "C") for d in second)
    assert "#" not in json.dumps(value)


def test_a_set_of_an_earlier_version_gets_the_new_files(smoke, tmp_path):
    import shutil

    old = tmp_path / "old"
    shutil.copytree(smoke, old)
    for name in ("egoexo", "ego4d/long"):
        shutil.rmtree(old / name)
    (old / "ego4d/fho_lta_taxonomy.json").unlink()
    clip = (old / "videos/smoke-0000.mp4").stat().st_mtime_ns
    make("smoke", old, progress=False)
    assert (old / "videos/smoke-0000.mp4").stat().st_mtime_ns == clip
    for name in ("egoexo/takes.json", "ego4d/fho_lta_train.json", "manifest.json"):
        assert (old / name).read_bytes() == (smoke / name).read_bytes()
