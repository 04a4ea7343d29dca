"""What an evaluation cost, from what ran: FLOPs in both countings, KV bytes, kept rows, times, peak memory."""

import resource
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtskip.runtime.report import Report
from vtskip.streaming.model import LlavaStream
from vtskip.streaming.session import percentiles

SUMS = ("flops_linear", "flops_linear_dense", "flops_full", "flops_full_dense", "kv_bytes", "kv_bytes_dense")


class MeteredStream(LlavaStream):
    """A LlavaStream that keeps the report of the last pass over a whole conversation.

    The late frames of silent turns, fed afterwards, are left out: whether there are any depends on the predictions.
    """

    whole: Report | None = None

    def step(self, ids: Sequence[int], features: Tensor | None, cache: Any, rows: Sequence[int]) -> Tensor:
        """As ``LlavaStream.step``."""
        first = cache.get_seq_length() == 0
        if first:
            self.handle.reset()
        logits = super().step(ids, features, cache, rows)
        if first:
            self.whole = self.handle.report()
        return logits


def sample_cost(report: Report, frames: int) -> dict[str, Any]:
    """JSON-ready cost of one sample with ``frames`` frames."""
    sums: dict[str, Any] = {name: getattr(report, name) for name in SUMS}
    kept = {"kept": [layer.kept for layer in report.layers], "kept_ffn": [layer.kept_ffn for layer in report.layers]}
    return {**sums, **kept, "frames": frames}


def summary(costs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums over samples, ratios to dense, and the mean share of vision rows kept per layer, weighed by frames."""
    s = {name: sum(cost[name] for cost in costs) for name in SUMS}
    return {
        **s,
        "flops_linear_ratio": _ratio(s["flops_linear"], s["flops_linear_dense"]),
        "flops_ratio": _ratio(s["flops_full"], s["flops_full_dense"]),
        "kv_ratio": _ratio(s["kv_bytes"], s["kv_bytes_dense"]),
        "kept_vision": _per_layer(costs, "kept"),
        "kept_vision_ffn": _per_layer(costs, "kept_ffn"),
    }


def times(costs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rates and percentiles of what was timed, and the largest memory.

    ``seconds_per_frame``, ``frames_per_second``: of live sessions, tower and replies included. ``first_token_seconds``: from a
    question, or from the frame that a reply follows, to the reply's first token. ``tokens_per_second``: of answers and
    rollouts, all work included.
    """
    live = [s for cost in costs for s in cost.get("live_seconds", ())]
    first = [s for cost in costs for s in _several(cost.get("first_token_seconds"))]
    timed = [cost for cost in costs if "tokens" in cost]
    out: dict[str, Any] = {}
    if live:
        p50, p95 = percentiles(live)
        out = {"seconds_per_frame_p50": p50, "seconds_per_frame_p95": p95, "frames_per_second": len(live) / sum(live)}
    if first:
        p50, p95 = percentiles(first)
        out |= {"first_token_seconds_p50": p50, "first_token_seconds_p95": p95}
    if timed:
        seconds = sum(cost["seconds"] for cost in timed)
        out["tokens_per_second"] = sum(cost["tokens"] for cost in timed) / seconds if seconds else 0.0
    peaks = [cost["peak_memory_bytes"] for cost in costs if "peak_memory_bytes" in cost]
    return out | ({"peak_memory_bytes": max(peaks)} if peaks else {})


def _several(value: float | Sequence[float] | None) -> Sequence[float]:
    return () if value is None else [value] if isinstance(value, int | float) else value


def _per_layer(costs: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    total = sum(cost["frames"] for cost in costs)
    layers = zip(*(cost[name] for cost in costs))
    return [sum(k * c["frames"] for k, c in zip(layer, costs)) / total for layer in layers] if total else []


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def peak_memory(device: torch.device) -> dict[str, Any]:
    """Largest memory since the last reset, of the GPU's allocator or of the process."""
    if device.type == "cuda":
        return {"peak_memory_bytes": torch.cuda.max_memory_allocated(device), "peak_memory_of": "gpu"}
    return {"peak_memory_bytes": _resident(), "peak_memory_of": "process"}


def peak_of(lines: Sequence[Mapping[str, Any]], device: torch.device) -> dict[str, Any]:
    """Largest memory of a whole run: of its finished samples, and now."""
    now = peak_memory(device)
    peaks = [line["cost"]["peak_memory_bytes"] for line in lines if line.get("cost")]
    return now | {"peak_memory_bytes": max([now["peak_memory_bytes"], *peaks])}


def reset_peak(device: torch.device) -> None:
    """Forget the largest memory so far; where the system does not let a process do that, it stays that of all rows."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _resident() -> int:
    """Largest resident memory in bytes; Linux tells it since the last reset."""
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def synchronised(device: torch.device) -> None:
    """Wait for the device, so that a clock that is read next has seen the work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
