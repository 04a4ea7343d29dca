"""Corner cases of the reference flavour: silence, one-frame turns, early and late replies."""

import pytest

from tests.helpers_stream import ScriptedModel, frames_of, one_hot, stream_ids
from vtskip.eval import metrics
from vtskip.eval.records import SampleRecord
from vtskip.eval.stream_score import score


def test_corner_cases(golden):
    item = golden("stream_corner_cases")
    config = item.json["config"]
    ids = stream_ids(config)
    for case in item.json["cases"]:
        argmax = [0] * len(case["input_ids"])
        frames = iter([a for t in case["turns"] for a in t["argmax_at_frames"]])
        text = iter([a for t in case["turns"] for a in t["argmax_at_text"]])
        for p, label in enumerate(case["labels"]):
            if label != -100:
                argmax[p] = next(frames if case["input_ids"][p] == ids.frame_id else text)
        appended = one_hot(case["argmax_at_appended_frames"], config["vocabulary"], ids)
        model = ScriptedModel(one_hot(argmax, config["vocabulary"]), appended)
        turns = score(model, case["input_ids"], case["labels"], frames_of(case["input_ids"], ids), ids)

        got = metrics.reference_sample(SampleRecord(case["case"], 1.0, turns))
        for name, want in case["result"].items():
            if want is not None:
                assert got[name] == pytest.approx(want, abs=float(item.json["tolerance"]["all"])), (case["case"], name)
        assert len(model.calls) == 1 + bool(case["argmax_at_appended_frames"]), case["case"]
