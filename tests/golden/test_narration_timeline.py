"""The reference's mapping of timed narrations to turns, its text cleaning and its time rounding."""

import itertools
import math

from vtskip.data.timeline import Narration, clean_text, reference_timeline, round_time, text_marks


def _narrations(case):
    return [Narration(n["time"], n["text"]) for n in case["narrations"]]


def test_timeline_equals_the_reference(golden):
    item = golden("narration_timeline").json
    for case in item["cases"]:
        result = reference_timeline(_narrations(case), case["duration"], item["config"]["fps"])
        assert result.conversation == case["conversation"]
        assert (result.first_frame, result.last_frame) == (case["first_frame"], case["last_frame"])


def test_integer_marks_are_the_reference_s_replies(golden):
    """Where the grid is exact in floats the two agree; elsewhere the reference's float times may be a frame off."""
    item = golden("narration_timeline").json
    fps = item["config"]["fps"]
    for case in item["cases"]:
        marks = text_marks(_narrations(case), math.floor(case["duration"] * fps) + 1, fps)
        frames = [frame for frame, _ in marks]
        assert frames == sorted(set(frames))
        if fps in (1, 2, 4, 8) and float(case["duration"] * fps).is_integer():
            turns = case["conversation"]
            assert [text for _, text in marks] == [t["content"] for t in turns if t["role"] == "assistant"]
            shown = itertools.accumulate(t["num_frames"] for t in turns if t["role"] == "stream")
            assert frames == [case["first_frame"] - 1 + n for n in shown]
            assert frames[-1] == case["last_frame"]


def test_clean_text(golden):
    for case in golden("narration_timeline").json["clean_text"]:
        assert clean_text(case["in"]) == case["out"]


def test_time_rounding(golden):
    for case in golden("narration_timeline").json["time_rounding"]:
        for mode in ("ceil", "round", "floor"):
            assert round_time(case["time"], case["fps"], case["max_time"], mode) == case[mode]
