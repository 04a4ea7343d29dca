"""The online loop with a scripted model: what is fed for every frame, when a reply starts, how questions are inserted."""

import math

import numpy as np
import pytest
import torch

from tests.helpers_stream import ScriptedCache
from vtskip.streaming.session import StreamSession
from vtskip.template import StreamTemplate

SPECIAL = ["<s>", "</s>", "<v>", "]\n", ","]


class CharTokenizer:
    """Every character is a token, except the special ones and the two characters of the reply opener."""

    def __init__(self, text: str):
        self.names = SPECIAL + sorted(set(text) - {","})
        self.ids = {name: i for i, name in enumerate(self.names)}

    def encode(self, text, add_special_tokens=False):
        pieces = text.replace("]\n", "\0")
        return [self.ids["]\n" if c == "\0" else c] for c in pieces]

    def decode(self, ids, skip_special_tokens=True):
        return "".join(self.names[i] for i in ids)


class ScriptedLoop:
    """P(interval) per frame and the replies come from the case; every call is written down as in the golden file."""

    def __init__(self, tokenizer, case):
        self.tokenizer, self.case = tokenizer, case
        self.calls, self.frame = [], 0
        self.replies = iter(case["replies"])
        self.upcoming = []

    def new_cache(self):
        return ScriptedCache()

    def encode(self, frames):
        return frames

    def step(self, ids, features, cache, rows):
        names = [self.tokenizer.names[i] for i in ids]
        call = {"fed": [n for n in names if n != "<v>"]}
        if features is not None:
            assert [int(f) for f in features] == [self.frame]
            assert names.count("<v>") == names[::-1].index(next(n for n in names[::-1] if n != "<v>")), "frame comes last"
            call["fed"].append(f"<frame {self.frame}>")
            call["interval_probability"] = p = self.case["pint"][self.frame]
            self.frame += 1
            logits = torch.full((len(self.tokenizer.names),), -math.inf, dtype=torch.float64)
            logits[self.tokenizer.ids[","]] = math.log(p)
            logits[self.tokenizer.ids["]\n"]] = math.log1p(-p)
        else:
            if names[0] == "]\n":
                self.upcoming = [*next(self.replies), "</s>"]
            logits = torch.zeros(len(self.tokenizer.names), dtype=torch.float64)
            logits[self.tokenizer.ids[self.upcoming.pop(0)]] = 1.0
        self.calls.append(call)
        cache.length += len(ids)
        assert list(rows) == [len(ids) - 1]
        return logits[None]


@pytest.mark.parametrize("frame_tokens", [1, 3])
def test_calls_and_outputs(golden, frame_tokens):
    for case in golden("live_loop").json["cases"]:
        spoken = [*case["replies"], case["system"], *(text for _, text in case["queries"])]
        tokenizer = CharTokenizer("".join(spoken) + "\n[]:User Assistant")
        ids = tokenizer.ids
        template = StreamTemplate(tokenizer, frame_tokens, ids["<v>"], ids[","], ids["]\n"], ids["<s>"], ids["</s>"])
        model = ScriptedLoop(tokenizer, case)
        longest = max(map(len, case["replies"]), default=1) + 1
        session = StreamSession(
            model, template, threshold=case["thr"], max_new_tokens=longest, system=case["system"]
        )
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
