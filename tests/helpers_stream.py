"""Scripted stand-ins for a streaming model: logits come from a table or a script, calls are written down."""

import math
from dataclasses import dataclass, field

import torch

from vtskip.eval.stream_score import StreamIds
from vtskip.template import StreamTemplate


@dataclass
class Call:
    start: int
    ids: list[int]
    frames: list[int]


@dataclass
class ScriptedCache:
    length: int = 0

    def get_seq_length(self):
        return self.length

    def crop(self, amount):
        assert amount < 0, "crop is asked by number of positions, never by a layer's length"
        self.length += amount


@dataclass
class ScriptedModel:
    """First call: ``logits`` [S, V]. Later calls: ``appended``, one table or {cache length: table}."""

    logits: torch.Tensor
    appended: dict[int, torch.Tensor] | torch.Tensor | None = None
    calls: list[Call] = field(default_factory=list)

    def new_cache(self):
        return ScriptedCache()

    def step(self, ids, features, cache, rows):
        self.calls.append(Call(cache.length, list(ids), [] if features is None else features.tolist()))
        if len(self.calls) == 1:
            table = self.logits
        else:
            table = self.appended[cache.length] if isinstance(self.appended, dict) else self.appended
        assert len(table) == len(ids)
        cache.length += len(ids)
        return table[list(rows)]


def frames_of(input_ids: list[int], ids: StreamIds) -> torch.Tensor:
    """Features of all frames of a conversation: their indices."""
    return torch.arange(input_ids.count(ids.frame_id) // ids.frame_tokens)


def one_hot(argmax: list[int], vocabulary: int, ids: StreamIds | None = None) -> torch.Tensor:
    """Logits 0 at the argmax, -20 elsewhere; with ``ids`` the list is per frame and spread to its last token."""
    if ids is not None:
        width = len(ids.frames(1))
        argmax = [a for frame in argmax for a in [0] * (width - 1) + [frame]]
    logits = torch.full((len(argmax), vocabulary), -20.0)
    logits[range(len(argmax)), argmax] = 0.0
    return logits


def stream_ids(config: dict) -> StreamIds:
    """Token ids from the ``config`` of either kind of golden file."""
    if "token_ids" in config:
        names = config["token_ids"]
        prefix = (names["assistant_word"], names["colon"])
        return StreamIds(names["frame"], config["frame_num_tokens"], names["eos"], names["interval"], prefix)
    return StreamIds(
        config["frame_placeholder_id"], config["tokens_per_frame"], config["eos_id"], config["interval_id"]
    )


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


def char_template(text: str, frame_tokens: int = 1) -> StreamTemplate:
    """A template over the characters of ``text`` and of the template's own words."""
    tokenizer = CharTokenizer(text + "\n[]:User Assistant")
    return StreamTemplate(tokenizer, frame_tokens, *(tokenizer.ids[t] for t in ("<v>", ",", "]\n", "<s>", "</s>")))


class ScriptedLoop:
    """Speaks the model protocol from a script: P(interval) per frame, the rest on ``runner_up``, and the replies.

    ``calls`` lists the tokens of every call, placeholders of a frame as one ``<frame k>``, as the golden file does.
    """

    def __init__(self, template: StreamTemplate, p_interval: list[float], replies: list[str], runner_up: str = "]\n"):
        self.tokenizer = template.tokenizer
        self.frame_tokens = template.frame_tokens
        self.p_interval, self.replies, self.runner_up = p_interval, iter(replies), runner_up
        self.calls: list[dict] = []
        self.frame = 0
        self.upcoming: list[str] = []

    def new_cache(self):
        return ScriptedCache()

    def encode(self, frames):
        return frames

    def step(self, ids, features, cache, rows):
        assert list(rows) == [len(ids) - 1]
        cache.length += len(ids)
        names = [self.tokenizer.names[i] for i in ids]
        logits = torch.full((1, len(self.tokenizer.names)), -math.inf, dtype=torch.float64)
        if features is None:
            if names[0] == "]\n":
                self.upcoming = [*next(self.replies), "</s>"]
            self.calls.append({"fed": names})
            logits[0, self.tokenizer.ids[self.upcoming.pop(0)]] = 0.0
            return logits
        text, placeholders = names[: -self.frame_tokens], names[-self.frame_tokens :]
        assert [int(f) for f in features] == [self.frame]
        assert "<v>" not in text
        assert set(placeholders) == {"<v>"}
        p = self.p_interval[self.frame]
        self.calls.append({"fed": [*text, f"<frame {self.frame}>"], "interval_probability": p})
        self.frame += 1
        logits[0, self.tokenizer.ids[self.runner_up]] = math.log(1 - p) if p < 1 else -math.inf
        logits[0, self.tokenizer.ids[","]] = math.log(p) if p > 0 else -math.inf
        return logits
