"""The session beyond the golden cases: forced opener, cut replies, questions at the edges, cost, bad settings."""

import numpy as np
import pytest

from tests.helpers_stream import ScriptedLoop, char_template
from vtskip.errors import ConfigError
from vtskip.streaming.session import StreamSession, percentiles

TEMPLATE = char_template("Hi. C cuts. What? xyz", frame_tokens=2)


def session(p_interval, replies=(), runner_up="]\n", **kw):
    model = ScriptedLoop(TEMPLATE, p_interval, list(replies), runner_up)
    return model, StreamSession(model, TEMPLATE, **kw)


def play(live, frames, fps=2.0):
    return [e for k in range(frames) for e in live.push(np.asarray(k), k / fps)]


def fed(model):
    return ["".join(c["fed"]) for c in model.calls]


def test_opener_is_forced_whatever_the_runner_up_is():
    model, live = session([0.9, 0.4], ["C cuts."], runner_up="x", threshold=0.5)
    events = play(live, 2)
    assert [e.text for e in events] == ["C cuts."]
    assert fed(model)[2] == "]\nAssistant:"


@pytest.mark.parametrize(("threshold", "replies"), [(0.0, 0), (0.55, 0), (0.65, 1), (1.0, 2)])
def test_threshold_decides(threshold, replies):
    _, live = session([0.6, 0.7], ["C", "C"], threshold=threshold)
    assert len(play(live, 2)) == replies


def test_argmax_speaks_at_threshold_zero():
    _, live = session([0.4], ["C"], threshold=0.0)
    assert len(play(live, 1)) == 1


def test_long_reply_is_cut_and_closed_before_the_next_frame():
    model, live = session([0.1, 0.9], ["C cuts."], max_new_tokens=3)
    events = play(live, 2)
    assert events[0].text == "C c"
    assert fed(model)[1:] == ["]\nAssistant:", "C", " ", "c</s>\n[<frame 1>"]


def test_frame_placeholder_is_never_chosen_as_text():
    _, live = session([0.1], ["C"])
    live.model.replies = iter([["<v>", "x"]])  # the script puts the placeholder first; everything else ties below it
    live.max_new_tokens = 1
    assert "<v>" not in play(live, 1)[0].text


def test_question_before_the_first_frame_waits_for_it():
    model, live = session([0.9, 0.9], ["xyz"], system="Hi.")
    live.ask("What?", -1.0)
    events = play(live, 2)
    assert [(e.time, e.text, e.query, e.frame) for e in events] == [(-1.0, "xyz", "What?", 0)]
    assert fed(model)[0].startswith("<s>Hi.\n\n[<frame 0>")


def test_question_between_frames_is_answered_before_the_later_one():
    model, live = session([0.9, 0.9], ["xyz"])
    live.push(np.asarray(0), 0.0)
    live.ask("What?", 0.3)
    events = live.push(np.asarray(1), 0.5)
    assert [(e.time, e.frame) for e in events] == [(0.3, 0)]
    assert fed(model)[1] == "]\nUser: What?\nAssistant:"
    assert fed(model)[-1] == "</s>\n[<frame 1>"


def test_question_at_a_frame_replaces_its_reply():
    _, live = session([0.1], ["xyz"])
    live.ask("What?", 0.0)
    assert [(e.query, e.text) for e in play(live, 1)] == [("What?", "xyz")]


def test_question_after_the_end_is_answered_by_finish():
    _, live = session([0.9], ["xyz"])
    assert play(live, 1) == []
    live.ask("What?", 9.0)
    assert [(e.time, e.frame, e.text) for e in live.finish()] == [(9.0, 0, "xyz")]
    assert live.finish() == []


@pytest.mark.parametrize("system", ["Hi.", None])
def test_instruction_stands_after_the_first_frame_as_in_training(system):
    model, live = session([0.1, 0.9, 0.1], ["C cuts."], system=system, instruction="xyz")
    events = play(live, 3)
    assert [(e.text, e.frame) for e in events] == [("C cuts.", 2)]
    turns = [
        {"role": "system", "content": system},
        {"role": "stream", "num_frames": 1, "learn": False},
        {"role": "user", "content": "xyz"},
        {"role": "stream", "num_frames": 2, "learn": True},
        {"role": "assistant", "content": "C cuts.", "learn": True},
    ]
    names = TEMPLATE.tokenizer.names
    trained = "".join(names[i] for i in TEMPLATE.encode(turns[system is None :]).input_ids)
    frames = "".join(fed(model))
    for k in range(3):
        frames = frames.replace(f"<frame {k}>", "<v><v>")
    assert frames.replace("Assistant:C", "Assistant: C") + "</s>" == trained


def test_a_question_waits_until_the_instruction_is_in():
    model, live = session([0.9, 0.9, 0.9], ["C"], instruction="xyz")
    live.ask("What?", 0.0)
    assert [(e.query, e.frame) for e in play(live, 3)] == [("What?", 1)]
    assert fed(model)[1] == "]\nUser: xyz\n[<frame 1>"
    assert fed(model)[2] == "]\nUser: What?\nAssistant:"


def test_without_an_interval_token_frames_follow_each_other():
    template = char_template("C")
    template.interval_id = None
    model = ScriptedLoop(template, [0.0, 0.0], [], runner_up="</s>")
    live = StreamSession(model, template, threshold=0.0)
    assert play(live, 2) == []
    assert fed(model) == ["<s>\n[<frame 0>", "<frame 1>"]


def test_cost_counts_frames_replies_and_time():
    _, live = session([0.9, 0.1, 0.9], ["C cuts."])
    play(live, 3)
    cost = live.cost()
    assert (cost["frames"], cost["replies"], cost["reply_tokens"]) == (3, 1, 7)
    assert cost["seconds"] == pytest.approx(sum(live.seconds))
    assert cost["frames_per_second"] == pytest.approx(3 / cost["seconds"])
    assert 0 < cost["seconds_per_frame_p50"] <= cost["seconds_per_frame_p95"]
    assert [d.speak for d in live.decisions] == [False, True, False]
    assert [d.p_interval for d in live.decisions] == pytest.approx([0.9, 0.1, 0.9])


def test_cost_before_the_first_frame_is_zero():
    _, live = session([])
    assert live.cost()["frames_per_second"] == 0.0
    assert live.finish() == []


@pytest.mark.parametrize(
    "bad", [{"threshold": -0.1}, {"threshold": 1.5}, {"threshold": float("nan")}, {"max_new_tokens": 0}]
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(ConfigError, match="accepted"):
        session([0.5], **bad)


def test_percentiles_interpolate():
    assert percentiles([]) == (0.0, 0.0)
    assert percentiles([2.0]) == (2.0, 2.0)
    assert percentiles([float(i) for i in range(21)]) == pytest.approx((10.0, 19.0))
