"""Frame-by-frame steps: what a frame costs, beside the floors that weights, KV cache and products set.

With few rows per frame a step is bound by reading the weights, which leaving rows out does not shorten. What does: fewer K/V
to read in a long context, several frames in one step, several streams that share one. Each is an axis of this bench.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

import vtskip
from vtskip.eval.bench import machine as roof
from vtskip.eval.bench.batch import build_model
from vtskip.eval.bench.bounded import bounded
from vtskip.eval.bench.clock import now, ratio_stats, rotated, spread
from vtskip.eval.bench.graph import captured
from vtskip.eval.bench.peers import why
from vtskip.eval.bench.stream_config import StreamConfig
from vtskip.eval.bench.subjects import DENSE, label
from vtskip.eval.journal import Journal
from vtskip.eval.provenance import provenance
from vtskip.runtime.attach import attach
from vtskip.runtime.cache import SkipCache, kv_bytes
from vtskip.runtime.slots import SkipCacheLayer

SEED_FRAMES = 8  # at most so many frames are really fed; a longer context repeats their K/V
Tell = Callable[[str], None]


def run(config: StreamConfig, progress: Tell | None = None, journal: Path | None = None) -> dict[str, Any]:
    """Measure and return the record: a row per method and cell, and the stream of bounded memory."""
    tell = progress or (lambda text: None)
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    notes = Journal(journal, _fingerprint(config))
    notes.load()
    try:
        tell("what the machine can do")
        dtype = getattr(torch, config.dtype)
        machine = roof.measure(config.device, dtype)
        bench = StreamBench(config, dtype)
        cells = [_kept(notes, ("cell", *map(str, cell)), partial(bench.cell, cell, tell)) for cell in config.cells()]
        without_end = [
            _kept(notes, ("bounded", label(spec), ""), partial(bounded, bench, spec, tell))
            for spec in (config.bounded.methods if config.bounded else [])
        ]
        machine = machine.best(roof.measure(config.device, dtype))
        if config.device.startswith("cuda"):  # last: a capture that fails may break the device
            for cell in cells:
                bench.graphs(cell, tell)
        for cell in cells:
            _add_floors(cell, machine, roof.weight_bytes(bench.model))
    finally:
        notes.close()
        torch.set_num_threads(before)
    return {
        "kind": "bench_stream",
        "config": config.model_dump(mode="json"),
        "weight_bytes": roof.weight_bytes(bench.model),
        "cells": cells,
        "bounded": without_end,
        "roof": machine.as_dict(),
        **provenance(config.seed),
    }


def _kept(journal: Journal, key: tuple[str, ...], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    row, task, uid = key[0], key[1], "/".join(key[2:])
    line = journal.done.get((row, task, uid))
    if line is None:
        line = {"row": row, "task": task, "uid": uid, "found": work()}
        journal.add([line])
    return line["found"]


def _fingerprint(config: StreamConfig) -> str:
    facts = [vtskip.__version__, torch.__version__, config.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _add_floors(cell: dict[str, Any], machine: roof.Machine, weights: int) -> None:
    """Least milliseconds per frame, each alone: reading the weights, reading the cache, the products."""
    frames = cell["frames_per_step"] * cell["streams"]
    for row in cell["rows"]:
        floor = {
            "weights": machine.floor_ms(0, weights)["bytes"] / frames,
            "kv": machine.floor_ms(0, row["kv_bytes_per_step"])["bytes"] / frames,
            "flops": machine.floor_ms(row["flops_per_frame"], 0)["flops"],
        }
        row["floor_ms"] = {name: round(value, 4) for name, value in floor.items()}
        least = max(floor["weights"] + floor["kv"], floor["flops"])
        row["over_floor"] = round(row["ms_per_frame"]["median"] / least, 3)


@dataclass(eq=False)
class Stream:
    """One subject's stream(s): a cache, and the rows that go in next."""

    name: str
    spec: Any
    cache: Any
    embeds: Tensor


class StreamBench:
    def __init__(self, config: StreamConfig, dtype: torch.dtype):
        self.config, self.device = config, config.device
        longest = max(config.context, *config.contexts) + max(config.frames_per_step)
        rows = config.frame_rows * (longest + SEED_FRAMES)
        self.model = build_model(config, config.device, dtype, config.seed, max_position_embeddings=rows)
        self.vision = np.ones((1, rows), bool)
        self.group = (np.arange(rows) // config.frame_rows)[None]
        generator = torch.Generator().manual_seed(config.seed)
        most = (
            max(*config.streams, 1),
            config.frame_rows * max(SEED_FRAMES, config.bounded.fed if config.bounded else 1),
        )
        frames = config.frame_rows * max(config.frames_per_step)
        self.pool = torch.randn(most[0], max(most[1], frames), config.hidden, generator=generator).to(
            self.device, dtype
        )

    # ---------------------------------------------------------------- one step

    def inputs(self, stream: Stream) -> dict[str, Any]:
        return {"inputs_embeds": stream.embeds, "past_key_values": stream.cache, "use_cache": True, "logits_to_keep": 1}

    def step(self, stream: Stream) -> None:
        self.model(**self.inputs(stream))

    def on(self, stream: Stream, work: Callable[[Any], Any]) -> Any:
        """``work(handle)`` with the stream's method attached; the stock model has no handle."""
        with torch.no_grad():
            if stream.spec is None:
                return work(None)
            with attach(self.model, stream.spec) as handle, handle.rows(self.vision, self.group):
                return work(handle)

    def stream(self, name: str, spec: Any, cache: Any, frames: int, streams: int = 1) -> Stream:
        """A stream into which ``frames`` frames go per step."""
        return Stream(name, spec, cache, self.pool[:streams, : frames * self.config.frame_rows])

    def opened(self, name: str, spec: Any, frames: int, per_step: int, streams: int) -> Stream:
        """A stream that has seen ``frames`` frames: some are fed, and what they left in the cache is repeated."""
        seed = max(n for n in range(1, SEED_FRAMES + 1) if frames % n == 0)
        cache = DynamicCache() if spec is None else SkipCache()
        first = self.stream(name, spec, cache, seed, streams)
        self.on(first, lambda handle: self.step(first))
        repeat_rows(cache, frames // seed, first.embeds.shape[1])
        return self.stream(name, spec, cache, per_step, streams)

    # ---------------------------------------------------------------- a cell

    def cell(self, cell: tuple[int, int, int], tell: Tell) -> dict[str, Any]:
        """All methods at one context, number of frames per step and number of streams."""
        c, (context, per_step, streams) = self.config, cell
        title = f"{context} cached frames, {per_step} per step, {streams} streams"
        tell(title)
        names: list[tuple[str, Any]] = [(DENSE, None), *((f"vtskip {label(m)}", m) for m in c.methods)]
        opened = [self.opened(name, spec, context, per_step, streams) for name, spec in names]
        times: dict[str, list[float]] = {name: [] for name, _ in names}
        for i in range(c.rounds + 1):  # the first round warms up
            tell(f"{title}, round {i} of {c.rounds}")
            for stream in rotated(opened, i):
                seconds = self.on(stream, partial(self.timed, stream))
                if i:
                    times[stream.name].append(seconds / (per_step * streams))
        rows = [self.row(stream, times, per_step * streams) for stream in opened]
        return {"context": context, "frames_per_step": per_step, "streams": streams, "rows": rows}

    def timed(self, stream: Stream, handle: Any = None) -> float:
        """Seconds of one step, which is then taken back: every round sees the same context."""
        start = now(self.device)
        self.step(stream)
        seconds = now(self.device) - start
        stream.cache.crop(-stream.embeds.shape[1])
        return seconds

    def row(self, stream: Stream, times: dict[str, list[float]], frames: int) -> dict[str, Any]:
        own = times[stream.name]
        return {
            "name": stream.name,
            "method": stream.spec,
            "ms_per_frame": {k: round(1000 * v, 4) for k, v in spread(own).items()},
            "time_ratio": round(ratio_stats(own, times[DENSE])["median"], 4),
            "kv_bytes_per_step": kv_bytes(stream.cache),
            "flops_per_frame": self.flops(stream) // frames,
        }

    def flops(self, stream: Stream) -> int:
        """FLOPs of one step, as modelled from what ran."""
        counted = Stream(stream.name, stream.spec or DENSE, stream.cache, stream.embeds)

        def count(handle: Any) -> int:
            handle.reset()
            self.timed(counted)
            report = handle.report()
            return report.flops_full_dense if stream.spec is None else report.flops_full

        return self.on(counted, count)

    # ---------------------------------------------------------------- as captured graphs

    def graphs(self, cell: dict[str, Any], tell: Tell, capture: Any = None) -> None:
        """Add ``graph`` to the rows of a cell: milliseconds per frame of the step as one captured graph, or why it has none."""
        context, per_step, streams = (cell[key] for key in ("context", "frames_per_step", "streams"))
        for row in cell["rows"]:
            tell(f"captured graph of {row['name']}, {context} cached frames, {per_step} per step, {streams} streams")
            try:
                stream = self.opened(row["name"], row["method"], context, per_step, streams)
                row["graph"] = self.on(stream, partial(self.graphed, stream, per_step * streams, capture))
            except (
                Exception
            ) as e:  # any operation that waits for the host ends a capture, each with an error of its own
                row["graph"] = f"not captured: {why(e)}"

    def graphed(self, stream: Stream, frames: int, capture: Any, handle: Any) -> dict[str, float]:
        replay = captured(self.model, self.inputs(stream), capture)
        seconds = []
        for _ in range(self.config.rounds):
            start = now(self.device)
            replay()
            seconds.append((now(self.device) - start) / frames)
        return {k: round(1000 * v, 4) for k, v in spread(seconds).items()}


def repeat_rows(cache: Any, times: int, rows: int) -> None:
    """The cached rows ``times`` over, as if ``rows`` logical rows had come by each time. Contents do not matter to time."""
    for layer in cache.layers:
        layer.keys, layer.values = (t.repeat(1, 1, times, 1) for t in (layer.keys, layer.values))
        if isinstance(layer, SkipCacheLayer):
            assert layer.pos is not None
            layer.pos = torch.cat([layer.pos + i * rows for i in range(times)], 1)
            layer.ok = None if layer.ok is None else layer.ok.repeat(1, times)
            layer.seen, layer.room = times * rows, None
