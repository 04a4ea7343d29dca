"""What an evaluation cost, from what ran: FLOPs in both countings, KV bytes, kept rows, seconds per frame, peak memory."""

import resource
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vtskip.runtime.report import Report
from vtskip.streaming.model import LlavaStream

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


class CostMeter:
    """Adds up the reports of all conversations."""

    def __init__(self) -> None:
        self.sums = dict.fromkeys(SUMS, 0)
        self.kept: list[list[float]] = []
        self.kept_ffn: list[list[float]] = []
        self.frames: list[int] = []

    def add(self, report: Report, frames: int) -> None:
        """One conversation with ``frames`` frames."""
        for name in SUMS:
            self.sums[name] += getattr(report, name)
        self.kept.append([layer.kept for layer in report.layers])
        self.kept_ffn.append([layer.kept_ffn for layer in report.layers])
        self.frames.append(frames)

    def summary(self) -> dict[str, Any]:
        """Sums over conversations, ratios to dense, and the mean share of vision rows kept per layer."""
        s = self.sums
        return {
            **s,
            "flops_linear_ratio": _ratio(s["flops_linear"], s["flops_linear_dense"]),
            "flops_ratio": _ratio(s["flops_full"], s["flops_full_dense"]),
            "kv_ratio": _ratio(s["kv_bytes"], s["kv_bytes_dense"]),
            "kept_vision": self._per_layer(self.kept),
            "kept_vision_ffn": self._per_layer(self.kept_ffn),
        }

    def _per_layer(self, table: list[list[float]]) -> list[float]:
        total = sum(self.frames)
        return [sum(k * f for k, f in zip(layer, self.frames)) / total for layer in zip(*table)] if total else []


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def peak_memory(device: torch.device) -> dict[str, Any]:
    """Largest memory so far, of the GPU's allocator or of the process."""
    if device.type == "cuda":
        return {"peak_memory_bytes": torch.cuda.max_memory_allocated(device), "peak_memory_of": "gpu"}
    return {"peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "peak_memory_of": "process"}
