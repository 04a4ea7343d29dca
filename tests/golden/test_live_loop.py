"""The online loop with a scripted model: what is fed for every frame, when a reply starts, how questions are inserted."""

import numpy as np

from tests.helpers_stream import ScriptedLoop, char_template
from vtskip.streaming.session import StreamSession


def test_calls_and_outputs(golden):
    for case in golden("live_loop").json["cases"]:
        spoken = [*case["replies"], case["system"], *(text for _, text in case["queries"])]
        template = char_template("".join(spoken), frame_tokens=case["F"])
        model = ScriptedLoop(template, case["pint"], case["replies"])
        longest = max(map(len, case["replies"]), default=1) + 1
        session = StreamSession(model, template, threshold=case["thr"], max_new_tokens=longest, system=case["system"])
        questions = [tuple(q) for q in case["queries"]]
        events = []
        for k in range(len(case["pint"])):
            now = k / case["fps"]
            while questions and questions[0][0] <= now:
                time, text = questions.pop(0)
                session.ask(text, time)
            events += session.push(np.asarray(k), now)

        assert model.calls == case["model_calls"]
        got = [
            {"video_time": e.time, "query": e.query, "reply": e.text, "after_frame_index_fed": e.frame} for e in events
        ]
        assert got == case["outputs"]
        cost = session.cost()
        assert (cost["frames"], cost["replies"]) == (len(case["pint"]), len(case["outputs"]))
        assert cost["reply_tokens"] == sum(len(o["reply"]) for o in case["outputs"])
