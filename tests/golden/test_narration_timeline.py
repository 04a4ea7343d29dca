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
    """Same texts, order and first frame; where the grid is exact in floats also the same frame for every reply."""
    item = golden("narration_timeline").json
    fps = item["config"]["fps"]
    for case in item["cases"]:
        total = math.floor(case["duration"] * fps) + 1
        marks = text_marks(_narrations(case), total, fps)
        turns = case["conversation"]
        assert [text for _, text in marks] == [t["content"] for t in turns if t["role"] == "assistant"]
        assert marks[0][0] == case["first_frame"]
        if fps in (1, 2, 4, 8) and float(case["duration"] * fps).is_integer():
            frames = itertools.accumulate(t["num_frames"] for t in turns if t["role"] == "stream")
            assert [frame for frame, _ in marks] == [case["first_frame"] - 1 + n for n in frames]
            assert marks[-1][0] == case["last_frame"]


def test_clean_text(golden):
    for case in golden("narration_timeline").json["clean_text"]:
        assert clean_text(case["in"]) == case["out"]


def test_time_rounding(golden):
    for case in golden("narration_timeline").json["time_rounding"]:
        for mode in ("ceil", "round", "floor"):
            assert round_time(case["time"], case["fps"], case["max_time"], mode) == case[mode]
