"""The named turn records A..I: raw records, forward calls and per-turn values, from logits and from records alone."""

import pytest

from tests.helpers_stream import ScriptedModel, frames_of, one_hot, stream_ids
from vtskip.eval import metrics
from vtskip.eval.records import FrameScores, SampleRecord, TurnRecord
from vtskip.eval.stream_score import content_mask, score


def check(item, case, turns, threshold):
    tolerance = item["tolerance"]
    for turn, want in zip(turns, case["turns"], strict=True):
        expected = want["expected"]
        assert (turn.T, turn.L, turn.k) == (want["T"], expected["L"], expected["k"])
        assert metrics.frame_diff(turn, threshold) == expected["frame_diff_signed"]
        assert metrics.fluency(turn, threshold) == pytest.approx(expected["fluency"], abs=tolerance["fluency"])
    got = metrics.reference_sample(SampleRecord(case["id"], 1.0, turns, threshold))
    want = case["expected"]
    assert got["frame_diff"] == want["frame_diff_abs"]
    assert got["fluency"] == pytest.approx(want["fluency"], abs=tolerance["fluency"])
    assert got["lm_correctness"] == pytest.approx(want["lm_correctness"], abs=tolerance["lm_correctness"])
    assert got["lm_ppl"] == pytest.approx(want["lm_ppl"], rel=tolerance["lm_ppl_relative"])


def test_records_from_logits(golden):
    item = golden("stream_turn_records").json
    config = item["config"]
    ids = stream_ids(config)
    threshold = config["frame_token_interval_threshold"]
    for case in item["cases"]:
        tensors = case["tensors"]
        appended = [one_hot(a, config["vocab_size"], ids) for a in tensors["append_pred_ids"]]
        by_start = {c["cache_len"]: a for c, a in zip(case["forward_calls"][1:], appended)}
        model = ScriptedModel(one_hot(tensors["pred_ids"], config["vocab_size"]), by_start)
        turns = score(
            model, tensors["input_ids"], tensors["labels"], frames_of(tensors["input_ids"], ids), ids, threshold
        )
        check(item, case, turns, threshold)
        for turn, want in zip(turns, case["turns"]):
            assert turn.is_last == want["is_last_turn"]
            assert turn.stream.spoken(threshold) == want["frame_speak"]
            assert turn.text_correct == want["text_correct"]
            assert turn.text_ce == pytest.approx(want["text_ce"], rel=1e-5, abs=1e-7)
            assert (turn.appended is None) == (want["append"]["offered"] is None)
            if turn.appended:
                assert turn.offered == want["append"]["offered"]
                assert turn.appended.spoken(threshold) == want["append"]["speak"]
        calls = sorted(model.calls[1:], key=lambda c: c.start)
        for call, want in zip([model.calls[0], *calls], case["forward_calls"], strict=True):
            assert (len(call.ids), len(call.frames)) == (want["num_tokens"], want["num_frames"])
            if "cache_len" in want:
                assert call.start == want["cache_len"]
                assert (call.ids, call.frames[0]) == (want["input_ids"], want["first_frame"])


def test_metrics_from_records(golden):
    item = golden("stream_turn_records").json
    ids = stream_ids(item["config"])
    threshold = item["config"]["frame_token_interval_threshold"]

    def frames(speak):
        return FrameScores([0.0 if s else 1.0 for s in speak], speak)

    for case in item["cases"]:
        turns = [
            TurnRecord(
                turn=i,
                frames=t["num_frames"],
                first_frame=0,
                is_last=t["is_last_turn"],
                offered=t["append"]["offered"] or 0,
                stream=frames(t["frame_speak"]),
                target_speak=[x != ids.interval_id for x in t["frame_target_ids"]],
                text_ce=t["text_ce"],
                text_target=t["text_target_ids"],
                text_pred=t["text_pred_ids"],
                text_content=content_mask(t["text_target_ids"], ids),
                appended=frames(t["append"]["speak"]) if t["append"]["speak"] else None,
            )
            for i, t in enumerate(case["turns"])
        ]
        check(item, case, turns, threshold)
