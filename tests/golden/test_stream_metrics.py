"""The reference flavour on the published code's own results, through the scorer a real model goes through."""

import pytest
import torch

from tests.helpers_stream import ScriptedModel, frames_of, stream_ids
from vtskip.eval import metrics
from vtskip.eval.records import SampleRecord
from vtskip.eval.stream_score import score


def tolerance(text: str) -> float:
    return float(text.split()[-1])


@pytest.mark.parametrize("name", ["stream_metrics", "stream_metrics_no_interval"])
def test_conversations_match_reference(golden, name):
    item = golden(name)
    ids = stream_ids(item.json["config"])
    rtol = tolerance(item.json["tolerance"]["all"])
    for i, case in enumerate(item.json["cases"]):
        appended = {
            a["kept_positions"]: item.tensors[f"case{i}.appended{j}.logits"] for j, a in enumerate(case["appended"])
        }
        model = ScriptedModel(item.tensors[f"case{i}.logits"], appended)
        turns = score(
            model, case["input_ids"], case["labels"], frames_of(case["input_ids"], ids), ids, case["threshold"]
        )

        assert sorted(c.start for c in model.calls[1:]) == sorted(appended), (
            f"case {i}: which silent turns are continued"
        )
        got = metrics.reference_sample(SampleRecord(str(i), 1.0, turns, case["threshold"]))
        assert got == pytest.approx(case["result"], rel=rtol, abs=1e-12), f"case {i}"
        assert [t.turn for t in turns] == [t["turn"] for t in case["turns"]]
        for turn, want in zip(turns, case["turns"]):
            assert [want["T"], want["L"]] == [turn.T, turn.L]
            assert metrics.frame_diff(turn, case["threshold"]) == want.get("d")
            if "k" in want:
                assert turn.k == want["k"]
            assert (metrics.fluency(turn, case["threshold"]) is None) == ("fluency" not in want)
            if "fluency" in want:
                assert metrics.fluency(turn, case["threshold"]) == pytest.approx(want["fluency"], rel=rtol)
            if "appended_frames" in want:
                assert turn.appended is not None
                assert len(turn.appended.p_interval) == turn.offered == want["appended_frames"]
        lengths = {c.start: len(c.ids) for c in model.calls[1:]}
        assert lengths == {a["kept_positions"]: a["length"] for a in case["appended"]}


def test_records_survive_json_and_higher_thresholds(golden):
    item = golden("stream_metrics")
    ids = stream_ids(item.json["config"])
    for i, case in enumerate(item.json["cases"]):
        if case["threshold"]:
            continue
        appended = {
            a["kept_positions"]: item.tensors[f"case{i}.appended{j}.logits"] for j, a in enumerate(case["appended"])
        }

        def scored(threshold, i=i, case=case, appended=appended):
            model = ScriptedModel(item.tensors[f"case{i}.logits"], appended)
            turns = score(model, case["input_ids"], case["labels"], frames_of(case["input_ids"], ids), ids, threshold)
            return SampleRecord(str(i), 2.0, turns, threshold)

        plain = SampleRecord.from_dict(scored(0.0).as_dict())
        for threshold in (0.3, 0.6, 1.0):
            direct = scored(threshold)
            assert metrics.reference([plain], threshold) == metrics.reference([direct])
            assert metrics.strict([plain], threshold) == metrics.strict([direct])


def test_float64_logits_stay_float64(golden):
    item = golden("stream_metrics")
    ids, case = stream_ids(item.json["config"]), item.json["cases"][0]
    logits = item.tensors["case0.logits"].double() + 1e-11 * torch.arange(item.json["config"]["vocabulary"])
    appended = {
        a["kept_positions"]: item.tensors[f"case0.appended{j}.logits"].double() for j, a in enumerate(case["appended"])
    }
    model = ScriptedModel(logits, appended)
    turn = score(model, case["input_ids"], case["labels"], frames_of(case["input_ids"], ids), ids)[0]
    text = [p for p, x in enumerate(case["labels"]) if x != -100 and case["input_ids"][p] != ids.frame_id][: turn.L]
    want = [-logits[p].log_softmax(-1)[case["labels"][p]].item() for p in text]
    assert turn.text_ce == pytest.approx(want, rel=1e-14)
