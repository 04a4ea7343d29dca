"""Attention kernels beside each other on the same packed rows: every one that can run here, and why the others cannot."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtskip.eval.bench.clock import now, rotated
from vtskip.eval.bench.config import KernelCase
from vtskip.eval.bench.peers import why
from vtskip.kernels.choice import TABLE
from vtskip.kernels.dispatch import PackedRows, packed_attention
from vtskip.kernels.packing import segments_of

TORCH_FLASH, MASKED = "torch flash", "masked sdpa"  # one call of scaled_dot_product_attention for the whole batch
ON_REQUEST = ("flex", "reference")  # not compared: flex compiles for a minute, the reference holds all logits


def compare(case: KernelCase, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Milliseconds of each kernel, forward and forward with backward, in interleaved rounds; ``error`` is its largest one
    against fp32, over the largest value. ``against``: what ``forward_speed`` and ``both_speed`` compare with: 0.85 of
    ``torch flash`` on equal row sets, of ``masked sdpa`` on others, takes 1 / 0.85 of its time.
    """
    rows, (q, k, v) = packed_rows(case, device), _tensors(case, device, dtype)
    scale = case.head_dim**-0.5
    with torch.no_grad():
        truth = packed_attention(q.float(), k.float(), v.float(), rows, scale=scale, kernel="sdpa")
    found: dict[str, dict[str, Any]] = {}
    for name in (TORCH_FLASH, MASKED, *(n for n in TABLE["attention"] if n not in ON_REQUEST)):
        try:
            with torch.no_grad():
                error = (_attention(name, q, k, v, rows, scale) - truth).abs().max()
            found[name] = {"error": float(error / truth.abs().max())}
            _both(name, q, k, v, rows, scale)
        except Exception as e:  # a kernel's own words on why it cannot
            found[name] = {"reason": why(e)}
    can = [name for name, row in found.items() if "reason" not in row]
    runs = {"forward_ms": _forward} | ({"both_ms": _both} if case.backward else {})
    for key, work in runs.items():
        for name, ms in _timed(case, can, partial(work, q=q, k=k, v=v, rows=rows, scale=scale), device).items():
            found[name][key] = ms
    against = TORCH_FLASH if rows.same_rows else MASKED
    for key in runs if against in can else ():
        for name in can:
            found[name][key.replace("_ms", "_speed")] = round(found[against][key] / found[name][key], 4)
    return case.model_dump() | {"against": against, "kernels": [{"kernel": n, **row} for n, row in found.items()]}


def packed_rows(case: KernelCase, device: str) -> PackedRows:
    """Every row asks, or ``queries`` of them in ``runs`` runs that end frames of equal length (text behind vision)."""
    position = torch.arange(case.rows, device=device).repeat(case.batch)
    lens = [case.rows] * case.batch
    if case.queries is None:
        return PackedRows(lens, lens, position, position, same_rows=True, consecutive=True)
    asking = np.zeros(case.rows, bool)
    each, period = max(1, case.queries // case.runs), case.rows // case.runs
    for run in range(case.runs):
        asking[(run + 1) * period - each : (run + 1) * period] = True
    segments = segments_of(np.tile(asking, (case.batch, 1)), np.ones((case.batch, case.rows), bool))
    asks = torch.from_numpy(np.tile(np.flatnonzero(asking), case.batch)).to(device)
    return PackedRows([int(asking.sum())] * case.batch, lens, asks, position, segments=segments)


def _tensors(case: KernelCase, device: str, dtype: torch.dtype) -> list[Tensor]:
    each = max(1, (case.queries or 0) // case.runs) * case.runs
    asking = case.rows if case.queries is None else each
    torch.manual_seed(0)
    sizes = ((asking, case.heads), (case.rows, case.kv_heads), (case.rows, case.kv_heads))
    made = [torch.randn(case.batch * n, heads, case.head_dim, device=device) for n, heads in sizes]
    return [t.to(dtype).requires_grad_(case.backward) for t in made]


def _attention(name: str, q: Tensor, k: Tensor, v: Tensor, rows: PackedRows, scale: float) -> Tensor:
    """``[Tq, heads, d]``. Raises ConfigError where a kernel of ours cannot, ValueError where order alone does not tell."""
    if name not in (TORCH_FLASH, MASKED):
        return packed_attention(q, k, v, rows, scale=scale, kernel=name)
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if name == TORCH_FLASH and not rows.same_rows:
        raise ValueError("knows no positions, and queries and keys are different rows")
    batch = len(rows.lens_q)  # all samples alike
    q, k, v = (t.unflatten(0, (batch, -1)).transpose(1, 2) for t in (q, k, v))
    options: dict[str, Any] = {"scale": scale, "enable_gqa": q.shape[1] != k.shape[1]}
    options |= {"is_causal": True} if name == TORCH_FLASH else {"attn_mask": rows.mask(0)}
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION) if name == TORCH_FLASH else nullcontext():
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)
    return out.transpose(1, 2).flatten(0, 1)


def _forward(name: str, q: Tensor, k: Tensor, v: Tensor, rows: PackedRows, scale: float) -> None:
    with torch.no_grad():
        _attention(name, q, k, v, rows, scale)


def _both(name: str, q: Tensor, k: Tensor, v: Tensor, rows: PackedRows, scale: float) -> None:
    out = _attention(name, q, k, v, rows, scale)
    if out.requires_grad:
        torch.autograd.grad(out, (q, k, v), torch.ones_like(out))


def _timed(case: KernelCase, names: list[str], work: Callable[[str], None], device: str) -> dict[str, float]:
    """Median milliseconds over rounds in which every kernel runs; on a GPU each time is the mean of ten calls."""
    calls = 10 if device.startswith("cuda") else 1
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(case.rounds):
        for name in rotated(names, i):
            seconds[name].append(_seconds(partial(work, name), device, calls))
    return {name: round(1000 * statistics.median(found), 4) for name, found in seconds.items()}


def _seconds(work: Callable[[], None], device: str, calls: int) -> float:
    start = now(device)
    for _ in range(calls):
        work()
    return (now(device) - start) / calls
