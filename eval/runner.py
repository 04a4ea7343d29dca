"""Run an evaluation: score every conversation under every row, take the metrics, write one record."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vtskip.data import build
from vtskip.data.collate import FrameCache
from vtskip.data.types import Sample
from vtskip.errors import ConfigError, DataError
from vtskip.eval import metrics
from vtskip.eval.config import EvalConfig
from vtskip.eval.cost import CostMeter, MeteredStream, peak_memory
from vtskip.eval.provenance import provenance
from vtskip.eval.records import SampleRecord
from vtskip.eval.stream_score import StreamIds, score
from vtskip.methods import Method, get_method
from vtskip.streaming.loading import StreamCheckpoint, load_stream
from vtskip.streaming.session import StreamSession, percentiles, play
from vtskip.streaming.vtt import write_text

Progress = Callable[[str, int, int], None]
FRAME_BYTES = 256 << 20  # decoded frames kept from row to row
POLICIES = {"always_speak": True, "never_speak": False}
TIMING = ("time_diff", "fluency", "miss_rate", "late_rate", "false_trigger_rate", "timing_")


def run(config: EvalConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Evaluate and return the record; with ``config.out`` also write ``record.json`` and ``samples.jsonl``.

    progress(row, done, total) is called after every conversation. Raises VtskipError for bad data, model or settings;
    nothing is written then.
    """
    torch.manual_seed(config.seed)
    method = None if config.method is None else get_method(config.method)
    checkpoint = load_stream(config.model, config.device, config.dtype)
    if method is not None and not checkpoint.use(method):
        raise ConfigError(
            f"method {config.method!r}: its parameters are not in {config.model}; train it, or leave it out"
        )
    samples = build(config.data)[: config.max_samples]
    if not samples:
        raise DataError(f"no conversations to evaluate in {config.data}")
    plan: dict[str, Method] = {"model": checkpoint.method}
    plan |= {row: row_method(row, checkpoint.method, config.seed) for row in config.rows}
    side = checkpoint.model.config.image_size
    cache = FrameCache(FRAME_BYTES // (3 * side * side))
    records: dict[str, list[SampleRecord]] = {}
    costs: dict[str, dict[str, Any]] = {}
    for row, method in plan.items():
        if method is not checkpoint.method:
            checkpoint.use(method)
        records[row], costs[row] = _score_row(checkpoint, samples, cache, row, config, progress)
    record = _record(config, samples, plan, records, costs) | peak_memory(checkpoint.model.device)
    if config.out is not None:
        lines = [json.dumps({"row": row, **r.as_dict()}, allow_nan=False) for row in records for r in records[row]]
        write_text(Path(config.out) / "samples.jsonl", "\n".join(lines) + "\n")
        write_text(Path(config.out) / "record.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    return record


def row_method(row: str, method: Method, seed: int) -> Method:
    """The method a comparison row runs with. Raises ConfigError if ``method`` has no counts that a control could match."""
    if row == "blind":
        return method
    if row == "dense":
        return get_method("dense")
    values = method.model_dump()
    if not {"keep", "schedule"} <= values.keys():
        raise ConfigError(f"rows: {row!r} needs a method with keep and schedule to match, not {method.name!r}")
    control = {"name": row, "keep": values["keep"], "schedule": values["schedule"]}
    return get_method(control | ({"seed": seed} if row == "random" else {}))


def _score_row(
    checkpoint: StreamCheckpoint,
    samples: Sequence[Sample],
    cache: FrameCache,
    row: str,
    config: EvalConfig,
    progress: Progress | None,
) -> tuple[list[SampleRecord], dict[str, Any]]:
    stream = MeteredStream(checkpoint.model)
    ids = StreamIds.of(checkpoint.template)
    records, meter, seconds = [], CostMeter(), []
    for done, sample in enumerate(samples, start=1):
        stream.whole = None
        encoded = checkpoint.template.encode(sample.conversation)
        frames = cache.read(sample, checkpoint.model.config.image_size)
        if row == "blind":
            frames = np.zeros_like(frames)
        features = stream.encode(frames) if len(frames) else None
        turns = score(stream, encoded.input_ids, encoded.labels, features, ids, config.threshold, config.continuation)
        meta = {"video": str(sample.video), "source": sample.source}
        records.append(SampleRecord(sample.uid, sample.fps, turns, config.threshold, meta))
        if stream.whole is not None:
            meter.add(stream.whole, len(frames))
        if done <= config.live_clips:
            seconds += live_seconds(checkpoint, sample, frames, config.live_threshold)
        if progress is not None:
            progress(row, done, len(samples))
    return records, meter.summary() | latency(seconds)


def live_seconds(checkpoint: StreamCheckpoint, sample: Sample, frames: np.ndarray, threshold: float) -> list[float]:
    """Seconds per frame of a live session over one clip, opened as the sample's conversation is; replies included."""
    opening = {turn["role"]: turn["content"] for turn in sample.conversation[:3] if turn["role"] in ("system", "user")}
    session = StreamSession(
        checkpoint.model,
        checkpoint.template,
        threshold=threshold,
        system=opening.get("system"),
        instruction=opening.get("user"),
    )
    for _ in play(session, ((k / sample.fps, frame) for k, frame in enumerate(frames))):
        pass
    return session.seconds


def latency(seconds: Sequence[float]) -> dict[str, Any]:
    """Percentiles and rate of live frames; empty if none were played."""
    if not seconds:
        return {}
    p50, p95 = percentiles(seconds)
    rate = len(seconds) / sum(seconds)
    return {"seconds_per_frame_p50": p50, "seconds_per_frame_p95": p95, "frames_per_second": rate}


def _record(
    config: EvalConfig,
    samples: Sequence[Sample],
    plan: dict[str, Method],
    records: dict[str, list[SampleRecord]],
    costs: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    accuracy = {row: flavours(r, config.tolerances) for row, r in records.items()}
    for name, speaks in POLICIES.items():
        policy = [metrics.with_policy(r, speaks) for r in records["model"]]
        accuracy[name] = {
            flavour: {k: v for k, v in values.items() if k.startswith(TIMING)}
            for flavour, values in flavours(policy, config.tolerances).items()
        }
    uids = "\n".join(s.uid for s in samples)
    return {
        "name": config.name,
        "model": config.model,
        "methods": {row: method.model_dump(mode="json") for row, method in plan.items()},
        "accuracy": accuracy,
        "comparison": comparison(accuracy),
        "cost": costs,
        "n_samples": len(samples),
        "n_videos": len({s.video for s in samples}),
        "n_turns": sum(len(r.turns) for r in records["model"]),
        "uids_sha256": hashlib.sha256(uids.encode()).hexdigest(),
        "config": config.model_dump(mode="json"),
        "provenance": provenance(config.seed),
    }


def flavours(records: Sequence[SampleRecord], tolerances: Sequence[float]) -> dict[str, dict[str, float | None]]:
    """Both flavours of all metrics."""
    return {"reference": {**metrics.reference(records)}, "strict": metrics.strict(records, tolerances=tolerances)}


def comparison(accuracy: dict[str, dict[str, dict[str, float | None]]]) -> dict[str, float | None]:
    """The model against the rows that do not look: content correctness as a ratio, TimeDiff (strict) in seconds saved."""
    strict = {row: values["strict"] for row, values in accuracy.items()}
    own = strict["model"]
    out: dict[str, float | None] = {}
    if "blind" in strict:
        blind, right = strict["blind"]["correctness"], own["correctness"]
        out["correctness_over_blind"] = right / blind if right is not None and blind else None
    for name in POLICIES:
        theirs, mine = strict[name]["time_diff"], own["time_diff"]
        out[f"time_diff_saved_against_{name}"] = None if theirs is None or mine is None else theirs - mine
    return out
