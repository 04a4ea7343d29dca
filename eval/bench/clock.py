"""Time, memory and ratios: what a number of the bench is made of."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def now(device: str) -> float:
    """Seconds: of this process' CPU time where there is no accelerator, which a neighbour's load distorts least."""
    if not device.startswith("cuda"):
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def peak_bytes(work: Callable[[], Any], device: str) -> int:
    """Peak memory of ``work`` beyond what was held before."""
    gc.disable()  # what others have left in cycles must not be freed, and subtracted, meanwhile
    try:
        if not device.startswith("cuda"):
            return cpu_peak_bytes(work)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    finally:
        gc.enable()


def cpu_peak_bytes(work: Callable[[], Any]) -> int:
    """Highest sum of bytes that ``work`` held at once beyond what was held before, from the allocator's own events."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports its start and stop on stderr
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = profiler.profiler.kineto_results.events()
    held = peak = 0
    for _, change in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        held += change
        peak = max(peak, held)
    return peak


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and the 20th and 80th percentile."""
    ordered = sorted(values)
    n = len(ordered)
    return {"median": statistics.median(ordered), "p20": ordered[n // 5], "p80": ordered[-1 - n // 5]}


def ratio_stats(times: Sequence[float], dense: Sequence[float]) -> dict[str, float]:
    """Median and spread of the round-by-round ratios."""
    return spread([a / b for a, b in zip(times, dense)])


def rotated(items: Sequence[T], by: int) -> list[T]:
    """Another first one each round: nobody always runs after the same neighbour."""
    by %= len(items)
    return [*items[by:], *items[:by]]
