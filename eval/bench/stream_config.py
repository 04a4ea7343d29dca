"""What the bench of frame-by-frame steps runs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vtskip.config import StrictModel
from vtskip.eval.bench.config import Decoder, Dtype
from vtskip.methods import MethodSpec

METHODS: list[MethodSpec] = [
    "dense",
    {"name": "mod", "keep": 0.2},
    {"name": "mod", "keep": 0.2, "schedule": {"kind": "constant"}},
    {"name": "skip_ffn", "keep": 0.2},
    {"name": "uniform", "keep": 0.2},
]


class Bounded(StrictModel):
    """A stream that is really run, with the oldest rows leaving the cache.

    Attributes:
        window_frames: frames of history that stay. frames: after how many frames the time per frame is compared.
        fed: frames per step on the way from one to the next. rounds: of timed cycles, each until rows leave once.
    """

    methods: list[MethodSpec] = [{"name": "mod", "keep": 0.2}]
    window_frames: int = Field(256, ge=8)
    frames: tuple[int, int] = (1000, 10000)
    fed: int = Field(40, ge=1)
    rounds: int = Field(5, ge=1)


class StreamConfig(Decoder):
    """One axis at a time around a stream of ``context`` frames, one frame per step, one stream.

    Attributes:
        frame_rows: vision rows of a frame. contexts: cached frames. frames_per_step: frames that go in together.
        streams: streams that share a step. context: cached frames where another axis is varied.
        rounds: timed rounds, all methods in each.
        bounded: the stream of bounded memory; None leaves it out.
    """

    kind: Literal["bench_stream"] = "bench_stream"
    kv_heads: int = Field(2, ge=1)
    frame_rows: int = Field(10, ge=1)
    context: int = Field(1000, ge=8)
    contexts: list[int] = [100, 1000, 10000]
    frames_per_step: list[int] = [1, 4, 16]
    streams: list[int] = [1, 4]
    rounds: int = Field(9, ge=1)
    bounded: Bounded | None = Bounded()
    methods: list[MethodSpec] = METHODS
    threads: int = Field(1, ge=1)
    dtype: Dtype = "float32"
    device: str = "cpu"
    seed: int = 0

    def quick(self) -> StreamConfig:
        """The same with few rounds and a short bounded stream: a look, not a measurement."""
        bounded = self.bounded and self.bounded.model_copy(update={"frames": (300, 600), "rounds": 1})
        return self.model_copy(update={"rounds": min(2, self.rounds), "bounded": bounded})

    def cells(self) -> list[tuple[int, int, int]]:
        """(cached frames, frames per step, streams), without repeats."""
        found = [(n, 1, 1) for n in self.contexts]
        found += [(self.context, n, 1) for n in self.frames_per_step]
        found += [(self.context, 1, n) for n in self.streams]
        return list(dict.fromkeys(found))
