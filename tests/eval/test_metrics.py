"""The strict flavour, against values worked out by hand, and the places where it must differ from the reference."""

import math
from dataclasses import replace

import pytest

from vtskip.errors import DataError
from vtskip.eval import metrics
from vtskip.eval.records import FrameScores, SampleRecord, TurnRecord


def turn(speak, text, *, last=True, offered=0, appended=None, target=None, ce=0.5):
    """One turn: per-frame spoken flags, per-token right flags (Assistant, colon, content..., end)."""

    def frames(flags):
        return FrameScores([0.2 if s else 0.9 for s in flags], list(flags))

    return TurnRecord(
        turn=0,
        frames=len(speak),
        first_frame=0,
        is_last=last,
        offered=offered,
        stream=frames(speak),
        target_speak=target if target is not None else [False] * (len(speak) - 1) + [True],
        text_ce=[0.0 if right and i < 2 else ce for i, right in enumerate(text)],
        text_target=[1] * len(text),
        text_pred=[int(right) for right in text],
        text_content=[2 <= i < len(text) - 1 for i in range(len(text))],
        appended=None if appended is None else frames(appended),
    )


def sample(*turns, fps=2.0, uid="a"):
    return SampleRecord(uid, fps, list(turns))


def silent(n, **kw):
    return turn([False] * n, [True] * 5, **kw)


ON_TIME = turn([False, False, True], [True] * 5)


def test_last_turn_silence_is_late_not_on_time():
    s = sample(silent(4))
    assert metrics.reference([s])["time_diff"] == 0
    got = metrics.strict([s])
    assert (got["time_diff"], got["time_diff_signed"], got["miss_rate"]) == (0.5, -0.5, 1.0)


def test_one_frame_silence_is_late_even_without_a_continuation():
    s = sample(silent(1, last=False), ON_TIME)
    assert metrics.reference_sample(s)["frame_diff"] == 0
    assert metrics.strict([s])["time_diff_signed"] == pytest.approx((-1 + 0) / 2 / 2)


def test_late_reply_counts_its_frames_and_is_no_miss():
    s = sample(silent(4, last=False, offered=3, appended=[False, True, False]), ON_TIME)
    got = metrics.strict([s])
    assert got["time_diff_signed"] == pytest.approx(-2 / 2 / 2)
    assert (got["miss_rate"], got["late_rate"]) == (0.0, 0.5)


def test_fluency_counts_consecutive_successes():
    early = turn([False, True, False, True], [True] * 5)  # early by 2: one right frame, then wrong
    assert metrics.fluency(early, 0.0) == pytest.approx(2 / 9)
    assert metrics.strict_fluency(early, 0.0) == pytest.approx(1 / 9)
    assert metrics.strict_fluency(silent(4), 0.0) == pytest.approx(3 / 9)
    assert metrics.strict_fluency(turn([False, True], [True, True, True, False, True]), 0.0) == pytest.approx(5 / 7)


def test_text_metrics_look_at_content_only():
    s = sample(turn([True], [True, True, False, True, True], ce=2.0))
    assert metrics.reference([s])["lm_correctness"] == pytest.approx(2 / 5)
    got = metrics.strict([s])
    assert (got["correctness"], got["whole_reply"]) == (0.0, 0.0)
    assert metrics.strict([sample(turn([True], [False, True, True, True, False]), turn([True], [True, True]))])[
        "whole_reply"
    ] == pytest.approx(1.0)
    assert got["token_accuracy"] == 0.5
    assert got["ppl_turn"] == pytest.approx(math.exp(2.0))
    assert metrics.reference([s])["lm_ppl"] == pytest.approx(math.exp(6 / 5))


def test_ppl_per_turn_is_a_mean_of_exponentials_and_per_token_is_not():
    s = sample(turn([True], [True] * 4, ce=1.0), turn([True], [True] * 6, ce=3.0))
    got = metrics.strict([s])
    assert got["ppl_turn"] == pytest.approx((math.e + math.e**3) / 2)
    assert got["ppl_token"] == pytest.approx(math.exp((1 * 1 + 3 * 3) / 4))


def test_macro_weighs_samples_and_micro_turns():
    a = sample(turn([True] * 3, [True] * 5), uid="a")  # early by 2
    b = sample(ON_TIME, ON_TIME, ON_TIME, uid="b")
    got = metrics.strict([a, b])
    assert got["time_diff"] == pytest.approx((1.0 + 0) / 2)
    assert got["time_diff_micro"] == pytest.approx(1.0 / 4)


def test_samples_without_data_are_perfect_only_in_the_reference():
    empty, bad = SampleRecord("e", 2.0, []), sample(turn([True] * 5, [False] * 5))
    assert metrics.reference([empty])["fluency"] == metrics.reference([empty])["lm_correctness"] == 1.0
    assert metrics.strict([empty, bad])["time_diff"] == metrics.strict([bad])["time_diff"] == 2.0
    assert metrics.strict([empty])["time_diff"] is None


def test_false_triggers_and_timing_f1():
    early = turn([False, True, False, True], [True] * 5)
    s = sample(early, silent(4), ON_TIME)
    got = metrics.strict([s], tolerances=(0.5, 1.0))
    assert got["false_trigger_rate"] == pytest.approx(1 / 8)
    # two of three turns are triggered; within 0.5 s one of them, within 1 s both
    assert got["timing_precision@0.5"] == 0.5
    assert got["timing_recall@0.5"] == pytest.approx(1 / 3)
    assert got["timing_f1@0.5"] == pytest.approx(2 * 1 / (2 + 3))
    assert got["timing_f1@1"] == pytest.approx(2 * 2 / (2 + 3))


def ranked(*silences):
    """A turn with these probabilities of silence, due at its last frame."""
    plain = turn([False] * len(silences), [True] * 5)
    return replace(plain, stream=FrameScores(list(silences), [False] * len(silences)))


def test_average_precision_of_timing():
    """At 2 fps. Ranked: right in turn 1; wrong; right in turn 2; and what is near a due frame counts once."""
    s = sample(ranked(0.9, 0.3, 0.8, 0.1), ranked(0.95, 0.7, 0.2, 0.4))
    # exact frame only: .1 right, .2 wrong, .3 wrong, .4 right
    assert metrics.timing_ap(s, 0) == pytest.approx((1 / 1 + 2 / 4) / 2)
    # within half a second .2 is right for turn 2, and .4 and .8 say nothing new
    assert metrics.timing_ap(s, 0.5) == pytest.approx(1.0)
    far = sample(ranked(0.1, 0.5, 0.5), ranked(0.1, 0.2, 0.3))
    # both frames of .1 are wrong; .2 is near at half a second, .3 not needed; .5 twice: one step
    assert metrics.timing_ap(far, 0.5) == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert metrics.strict([s, far], tolerances=(0.5,))["timing_ap@0.5"] == pytest.approx((1.0 + 5 / 12) / 2)


def test_average_precision_does_not_depend_on_the_order_of_equals():
    same = sample(ranked(0.5, 0.5, 0.5, 0.5))
    assert metrics.timing_ap(same, 0) == pytest.approx(1 / 4)
    cut = turn([False, False], [], target=[False, False])
    assert metrics.timing_ap(sample(cut), 1) is None
    assert metrics.timing_ap(sample(cut, ranked(0.9, 0.1)), 0) == 1.0


def test_stream_cut_before_a_question_has_no_due_reply():
    cut = turn([False, False], [], target=[False, False])
    got = metrics.strict([sample(cut)])
    assert got["time_diff"] is None
    assert got["miss_rate"] is None
    assert got["false_trigger_rate"] == 0.0


def test_policies_from_the_same_records():
    s = sample(turn([False] * 6, [True] * 5, last=False, offered=5, appended=[True] + [False] * 4), silent(4))
    always, never = metrics.with_policy(s, True), metrics.with_policy(s, False)
    assert metrics.reference_sample(always)["frame_diff"] == (5 + 3) / 2
    assert metrics.reference_sample(never)["frame_diff"] == (5 + 0) / 2
    assert metrics.strict([never])["time_diff_signed"] == pytest.approx(-(5 + 1) / 2 / 2)
    assert metrics.reference([always])["lm_ppl"] == metrics.reference([s])["lm_ppl"]
    # whatever the threshold, except the two at which no probability can decide otherwise
    assert metrics.strict([never], threshold=1.0) == metrics.strict([never], threshold=0.0)


def test_threshold_below_the_scored_one_is_refused():
    s = sample(silent(4, last=False, offered=3), ON_TIME)
    with pytest.raises(DataError, match="3 further frames"):
        metrics.reference([s])
    assert metrics.reference([s], threshold=0.95)["frame_diff"] == pytest.approx((3 + 2) / 2)


def test_no_samples_is_an_error():
    for flavour in (metrics.reference, metrics.strict):
        with pytest.raises(DataError, match="no sample records"):
            flavour([])


def test_records_name_a_missing_key():
    row = sample(ON_TIME).as_dict()
    assert SampleRecord.from_dict(row) == sample(ON_TIME)
    del row["turns"][0]["text_ce"]
    with pytest.raises(DataError, match="text_ce"):
        SampleRecord.from_dict(row)
