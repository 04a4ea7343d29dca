"""Scripted stand-ins for a streaming model: logits come from a table, calls are written down."""

from dataclasses import dataclass, field

import torch

from vtskip.eval.stream_score import StreamIds


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
