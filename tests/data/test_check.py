"""What a check finds: every planted fault by its kind, and what the data hold."""

import copy
import json
from collections import Counter

import pytest

from tests.data import formats
from tests.data.gray import gray_clip
from vtskip.data import DataConfig
from vtskip.data.check import check, summary
from vtskip.data.picture import picture

# unit -> (kind of fault, change to its record)
PLANTED = {
    "past": ("time past the end", lambda r: r["annotation"][0].update(segment=[0.6, 99.0])),
    "nan": ("wrong time", lambda r: r["annotation"][0].update(segment=[float("nan"), 1.0])),
    "swapped": ("wrong value", lambda r: r["annotation"][0].update(segment=[2.0, 1.0])),
    "nameless": ("missing key", lambda r: r.pop("class")),
    "typed": ("wrong type", lambda r: r.update(annotation={})),
    "silent": ("empty text", lambda r: r["annotation"][1].update(label=" ")),
    "dots": ("empty turn", lambda r: r["annotation"][1].update(label="..")),
    "gone": ("missing file", lambda r: None),
    "empty": ("broken file", lambda r: None),
    "cut": ("broken file", lambda r: None),
}


@pytest.fixture
def planted(tmp_path):
    """A COIN file of ten videos with a fault each and ten without."""
    database = {}
    clip = gray_clip(tmp_path / "videos/clip.mp4", fps=10)
    for uid, (_, spoil) in PLANTED.items():
        database[uid] = copy.deepcopy(formats.COIN["database"]["a"])
        spoil(database[uid])
    for i in range(10):
        database[f"good{i}"] = copy.deepcopy(formats.COIN["database"]["a"])
    for uid in database:
        if uid != "gone":
            (tmp_path / f"videos/{uid}.mp4").write_bytes(clip.read_bytes())
    (tmp_path / "videos/empty.mp4").write_bytes(b"")
    (tmp_path / "videos/cut.mp4").write_bytes(clip.read_bytes()[:-300])
    path = tmp_path / "COIN.json"
    path.write_text(json.dumps({"database": database}))
    return DataConfig(kind="coin", root=tmp_path, annotations="COIN.json", videos="videos")


def test_every_planted_fault_is_found_and_nothing_else(planted):
    report = check(planted)
    assert {unit: kind for unit, kind, _ in report.faults} == {unit: kind for unit, (kind, _) in PLANTED.items()}
    assert report.units == 20 and report.share == 0.5 and report.samples == 11
    facts = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert facts["failed"] == 10 and facts["faults_by_kind"]["broken file"] == 2
    assert facts["classes"] == {"ReplaceCDDriveWithSSD": 11}
    assert facts["seconds"] == {"count": 11, "total": 66.0, "min": 6.0, "median": 6.0, "mean": 6.0, "max": 6.0}
    assert facts["replies_per_conversation"]["total"] == 33
    assert check(planted.model_copy(update={"on_error": "skip"})).faults == report.faults


def test_damaged_pictures_inside_a_whole_file_are_found(tmp_path, planted):
    path = tmp_path / "videos/good3.mp4"
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    data[start : start + 400] = bytes(400)
    path.write_bytes(data)
    found = {unit: (kind, text) for unit, kind, text in check(planted).faults}
    assert found["good3"][0] == "broken file" and str(path) in found["good3"][1]
    both = check(planted, all_frames=True)
    assert {unit for unit, *_ in both.faults} == {*PLANTED, "good3"}


@pytest.mark.parametrize("number", range(16))
def test_every_format_as_published_has_no_fault(tmp_path, media, number):
    one = list(formats.formats(tmp_path))[number]
    report = check(one.config(one.write(tmp_path), media))
    assert report.faults == [] and report.samples == one.samples and report.files
    assert picture(report, one.name).startswith(b"\x89PNG")


def test_broken_records_of_a_list_are_counted_one_by_one(tmp_path, media):
    path = tmp_path / "chat.jsonl"
    lines = [json.dumps(record) for record in formats.MESSAGES]
    path.write_text("\n".join([lines[0], "{broken", lines[1], lines[2]]))
    report = check(DataConfig(kind="messages", annotations=path, videos=media))
    assert report.units == 4 and report.samples == 3
    ((unit, kind, message),) = report.faults
    assert (unit, kind) == ("line 2", "unreadable annotations") and f"{path}: line 2: not valid JSON" in message


def test_unreadable_annotations_are_one_fault(tmp_path):
    report = check(DataConfig(kind="coin", annotations=tmp_path / "none.json", videos=tmp_path))
    assert report.share == 1 and report.faults[0][1] == "unreadable annotations" and report.samples == 0
    assert picture(report, "none").startswith(b"\x89PNG")


def test_a_file_with_nothing_in_it_is_a_fault(tmp_path, media):
    (tmp_path / "chat.jsonl").write_text("\n")
    report = check(DataConfig(kind="messages", annotations=tmp_path / "chat.jsonl", videos=media))
    assert [(kind, message) for _, kind, message in report.faults] == [
        ("nothing there", f"{tmp_path}/chat.jsonl: no videos or records")
    ]
    assert report.share == 1


def test_summary():
    assert summary([]) is None
    assert summary([4, 1, 3]) == {"count": 3, "total": 8, "min": 1, "median": 3, "mean": 8 / 3, "max": 4}
    assert summary([1, 2])["median"] == 1.5


def test_whole_numbers_have_a_bar_each_over_their_own_tick():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from vtskip.data.picture import _bars, _histogram

    figure = Figure()
    FigureCanvasAgg(figure)
    first, second, third = figure.subplots(3)
    _histogram(first, [2, 2, 3], "frames", "conversations")
    assert [round(p.get_x() + p.get_width() / 2, 6) for p in first.patches] == [2, 3]
    assert all(float(tick).is_integer() for tick in first.get_xticks()) and first.get_xlim()[0] > 0
    _bars(second, Counter({"a" * 40: 2, "b": 1}), "classes", "red")
    assert [text.get_text() for text in second.texts] == ["1", "2"]
    assert max(len(label.get_text()) for label in second.get_yticklabels()) <= 27
    _bars(third, Counter(), "faults", "red")
    assert [text.get_text() for text in third.texts] == ["none"] and not len(third.get_xticks())
