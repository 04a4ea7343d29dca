"""A stream that never ends in memory that does: what a frame costs after few frames and after many."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vtskip.eval.bench.clock import now, ratio_stats, rotated
from vtskip.eval.bench.subjects import label
from vtskip.runtime.cache import SkipCache, kv_bytes
from vtskip.runtime.forget import forget

if TYPE_CHECKING:
    from vtskip.eval.bench.stream import Stream, StreamBench


def bounded(bench: StreamBench, spec: Any, tell: Callable[[str], None]) -> dict[str, Any]:
    """Time per frame, rows that leave included, at two places of one and the same stream, in interleaved cycles."""
    how, name, rows = bench.config.bounded, f"vtskip {label(spec)}", bench.config.frame_rows
    assert how is not None
    tell(f"{name}: a bounded stream of {how.frames[1]} frames")
    stream = bench.stream(name, spec, SkipCache(), how.fed)

    def feed(frames: int) -> None:
        for _ in range(-(-frames // how.fed)):
            push(bench, stream, how.window_frames)

    def play(handle: Any) -> tuple[list[list[float]], list[int]]:
        feed(how.frames[0])
        one = stream.embeds[:, :rows]
        early = replace(stream, cache=copy.deepcopy(stream.cache), embeds=one)
        feed(how.frames[1] - how.frames[0])
        both = early, replace(stream, embeds=one)
        cycle = max(1, how.window_frames // 8)  # rows leave once in so many frames
        found: list[list[float]] = [[], []]
        for i in range(how.rounds + 1):  # the first round warms up
            for at in rotated([0, 1], i):
                start = now(bench.device)
                for _ in range(cycle):
                    push(bench, both[at], how.window_frames)
                if i:
                    found[at].append((now(bench.device) - start) / cycle)
        return found, [kv_bytes(s.cache) for s in both]

    times, held = bench.on(stream, play)
    return {
        "name": name,
        "method": spec,
        "window_frames": how.window_frames,
        "frames": list(how.frames),
        "ms_per_frame": [round(1000 * statistics.median(t), 4) for t in times],
        "kv_bytes": held,
        "ratio": {k: round(v, 4) for k, v in ratio_stats(times[1], times[0]).items()},
    }


def push(bench: StreamBench, stream: Stream, window: int) -> None:
    """One step behind a window of at most ``window`` frames; the first frame stays, an eighth leaves at once."""
    rows = bench.config.frame_rows
    over = stream.cache.get_seq_length() + stream.embeds.shape[1] - window * rows
    if over > 0:
        leave = max(-(-over // rows), window // 8) * rows
        forget(bench.model, stream.cache, rows, rows + leave)
    bench.step(stream)
