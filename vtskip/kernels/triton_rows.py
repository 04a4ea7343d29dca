"""Row movement in Triton, each as one launch: gather (with RMS norm), and scatter with gain, residual and cast.

Indices are distinct, so gradients are written, never added: the same every time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _gather_norm(X, Index, Weight, Rows, Normed, Rstd, eps, offset, x_row, D: tl.constexpr, DP: tl.constexpr):
    i, dims = tl.program_id(0).to(tl.int64), tl.arange(0, DP)
    inside = dims < D
    x = tl.load(X + tl.load(Index + i) * x_row + dims, mask=inside, other=0.0)
    tl.store(Rows + i * D + dims, x, mask=inside)
    wide = x.to(tl.float32)
    rstd = 1 / tl.sqrt(tl.sum(wide * wide, 0) / D + eps)
    tl.store(Rstd + i, rstd)
    weight = tl.load(Weight + dims, mask=inside, other=0.0).to(tl.float32)
    tl.store(Normed + i * D + dims, wide * rstd * (offset + weight), mask=inside)


@triton.jit
def _gather_norm_backward(
    Rows, Weight, Rstd, DRows, DNormed, DX, Index, DWeight, offset, m, x_row,
    PER: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """``PER`` rows to a program, which sums their share of the weight's gradient: no atomics, the same every time."""
    dims = tl.arange(0, DP)
    inside = dims < D
    gain = offset + tl.load(Weight + dims, mask=inside, other=0.0).to(tl.float32)
    dweight = tl.zeros([DP], tl.float32)
    for k in range(PER):
        i = tl.program_id(0).to(tl.int64) * PER + k
        mask = inside & (i < m)
        x = tl.load(Rows + i * D + dims, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(DNormed + i * D + dims, mask=mask, other=0.0).to(tl.float32)
        rstd = tl.load(Rstd + i, mask=i < m, other=0.0)
        unit = x * rstd
        dweight += dy * unit
        back = dy * gain
        dx = rstd * (back - unit * (tl.sum(back * unit, 0) / D))
        dx += tl.load(DRows + i * D + dims, mask=mask, other=0.0).to(tl.float32)
        place = tl.load(Index + i, mask=i < m, other=0)
        tl.store(DX + place * x_row + dims, dx, mask=mask)
    tl.store(DWeight + tl.program_id(0) * D + dims, dweight, mask=inside)


@triton.jit
def _scatter_update(
    Base, Index, Rows, Gain, Ok, Out,
    D: tl.constexpr, DP: tl.constexpr, MODE: tl.constexpr, HAS_GAIN: tl.constexpr, HAS_OK: tl.constexpr,
):  # fmt: skip
    """``MODE``: 0 adds the rows to the base, 1 writes them, 2 blends; see the reference."""
    i, dims = tl.program_id(0).to(tl.int64), tl.arange(0, DP)
    inside = dims < D
    if HAS_OK:
        inside = inside & (tl.load(Ok + i) != 0)
    place = tl.load(Index + i) * D + dims
    new = tl.load(Rows + i * D + dims, mask=inside, other=0.0).to(tl.float32)
    gain = 1.0
    if HAS_GAIN:
        gain = tl.load(Gain + i).to(tl.float32)
    if MODE == 1:
        new = new * gain
    else:
        base = tl.load(Base + place, mask=inside, other=0.0).to(tl.float32)
        new = base + gain * (new - base) if MODE == 2 else base + gain * new
    tl.store(Out + place, new, mask=inside)


@triton.jit
def _scatter_backward(
    DOut, Index, Base, Rows, Gain, Ok, DBase, DRows, DGain,
    D: tl.constexpr, DP: tl.constexpr, MODE: tl.constexpr, HAS_GAIN: tl.constexpr, HAS_OK: tl.constexpr,
):  # fmt: skip
    i, dims = tl.program_id(0).to(tl.int64), tl.arange(0, DP)
    inside = dims < D
    here = inside
    if HAS_OK:
        here = inside & (tl.load(Ok + i) != 0)
    place = tl.load(Index + i) * D + dims
    dout = tl.load(DOut + place, mask=here, other=0.0).to(tl.float32)
    gain = 1.0
    if HAS_GAIN:
        gain = tl.load(Gain + i).to(tl.float32)
        added = tl.load(Rows + i * D + dims, mask=here, other=0.0).to(tl.float32)
        if MODE == 2:
            added -= tl.load(Base + place, mask=here, other=0.0).to(tl.float32)
        tl.store(DGain + i, tl.sum(dout * added, 0))
    if MODE > 0:  # what the rows hide of the base
        tl.store(DBase + place, (1 - gain) * dout if MODE == 2 else 0 * dout, mask=here)
    tl.store(DRows + i * D + dims, gain * dout, mask=inside)


@triton.jit
def _move(
    Wide, Narrow, Index, Periods,
    COUNT: tl.constexpr, WIDTHS: tl.constexpr, PADS: tl.constexpr, GATHER: tl.constexpr,
):  # fmt: skip
    """Row ``Index[i] % period`` of every wide tensor to row ``i`` of the narrow one of the same place, or the other way."""
    i = tl.program_id(0).to(tl.int64)
    index = tl.load(Index + i)
    for t in tl.static_range(COUNT):
        dims = tl.arange(0, PADS[t])
        inside = dims < WIDTHS[t]
        place, own = Wide[t] + index % Periods[t] * WIDTHS[t] + dims, Narrow[t] + i * WIDTHS[t] + dims
        if GATHER:
            tl.store(own, tl.load(place, mask=inside), mask=inside)
        else:
            tl.store(place, tl.load(own, mask=inside), mask=inside)


def _width(x: Tensor) -> dict[str, int]:
    return {"D": x.shape[-1], "DP": triton.next_power_of_2(x.shape[-1])}


class GatherNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, weight: Tensor, eps: float, offset: float) -> tuple[Tensor, Tensor]:
        x = x.contiguous()
        m = len(index)
        rows, normed = x.new_empty(m, x.shape[1]), x.new_empty(m, x.shape[1])
        rstd = x.new_empty(m, dtype=torch.float32)
        if m:
            _gather_norm[(m,)](x, index, weight, rows, normed, rstd, eps, offset, x.stride(0), **_width(x))
        ctx.save_for_backward(rows, index, weight, rstd)
        ctx.offset, ctx.total = offset, x.shape[0]
        return rows, normed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, index, weight, rstd = ctx.saved_tensors
        m, width = rows.shape
        dx = rows.new_zeros(ctx.total, width)
        per = 16
        partial = rows.new_empty(triton.cdiv(m, per), width, dtype=torch.float32)
        if m:
            drows, dnormed = (g.contiguous() for g in grads)
            _gather_norm_backward[(len(partial),)](
                rows,
                weight,
                rstd,
                drows,
                dnormed,
                dx,
                index,
                partial,
                ctx.offset,
                m,
                dx.stride(0),
                PER=per,
                **_width(rows),
            )
        return dx, None, partial.sum(0).to(weight.dtype), None, None


MODES = {"add": 0, "write": 1, "blend": 2}


def _update(
    out: Tensor, base: Tensor, index: Tensor, rows: Tensor, gain: Tensor | None, mode: str, ok: Tensor | None
) -> Tensor:
    if len(index):
        _scatter_update[(len(index),)](
            base, index, rows, gain, ok, out,
            MODE=MODES[mode], HAS_GAIN=gain is not None, HAS_OK=ok is not None, **_width(base),
        )  # fmt: skip
    return out


class ScatterUpdate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, base: Tensor, index: Tensor, rows: Tensor, *options: Any) -> Tensor:
        gain, mode, ok = options
        base, rows = base.contiguous(), rows.contiguous()
        out = _update(base.clone(), base, index, rows, gain, mode, ok)
        ctx.options = {"MODE": MODES[mode], "HAS_GAIN": gain is not None, "HAS_OK": ok is not None, **_width(base)}
        ctx.save_for_backward(
            index, base if mode == "blend" and gain is not None else None, None if gain is None else rows, gain, ok
        )
        ctx.kind = rows.dtype
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        index, base, rows, gain, ok = ctx.saved_tensors
        dout = grads[0].contiguous()
        dbase = dout if ctx.options["MODE"] == 0 else dout.clone()
        drows = dout.new_empty(len(index), dout.shape[1], dtype=ctx.kind)
        dgain = None if gain is None else torch.empty_like(gain)
        if len(index):
            _scatter_backward[(len(index),)](dout, index, base, rows, gain, ok, dbase, drows, dgain, **ctx.options)
        return dbase, None, drows, dgain, None, None


def _launch(wide: Sequence[Tensor], narrow: Sequence[Tensor], index: Tensor, gather: bool) -> None:
    widths = tuple(t.numel() // max(t.shape[0], 1) for t in narrow)
    pads, periods = tuple(triton.next_power_of_2(w) for w in widths), tuple(len(t) for t in wide)
    if len(index):
        _move[(len(index),)](
            tuple(wide), tuple(narrow), index, periods, COUNT=len(wide), WIDTHS=widths, PADS=pads, GATHER=gather
        )


class GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, index: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        wide = [t.contiguous() for t in tensors]
        out = tuple(t.new_empty(len(index), *t.shape[1:]) for t in wide)
        _launch(wide, out, index, True)
        ctx.save_for_backward(index)
        ctx.lengths = [len(t) for t in tensors]
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        asked = [t for t, needed in enumerate(ctx.needs_input_grad[1:]) if needed]
        narrow = [grads[t].contiguous() for t in asked]
        wide = [g.new_zeros(ctx.lengths[t], *g.shape[1:]) for t, g in zip(asked, narrow)]
        _launch(wide, narrow, index, False)
        found = dict(zip(asked, wide))
        return None, *(found.get(t) for t in range(len(ctx.lengths)))


class ScatterRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, index: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        bases, rows = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        out = tuple(t.clone(memory_format=torch.contiguous_format) for t in bases)
        _launch(out, [r.to(b.dtype).contiguous() for b, r in zip(bases, rows)], index, False)
        ctx.save_for_backward(index)
        ctx.kinds = [r.dtype for r in rows]
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        wide = [g.clone(memory_format=torch.contiguous_format) for g in grads]
        rows = [g.new_empty(len(index), *g.shape[1:]) for g in wide]
        _launch(wide, rows, index, True)
        _launch(wide, [torch.zeros_like(r) for r in rows], index, False)
        return None, *wide, *(r.to(kind) for r, kind in zip(rows, ctx.kinds))


def gather_norm(x: Tensor, index: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """As :func:`vtskip.kernels.reference.gather_norm`, differentiable in x and weight; ``index`` distinct."""
    return GatherNorm.apply(x, index, weight, eps, offset)


def scatter_update(
    base: Tensor,
    index: Tensor,
    rows: Tensor,
    gain: Tensor | None = None,
    mode: str = "add",
    ok: Tensor | None = None,
    fresh: bool = False,
) -> Tensor:
    """As :func:`vtskip.kernels.reference.scatter_update`, differentiable in base, rows and gain."""
    if fresh and not torch.is_grad_enabled():
        return _update(base, base, index, rows.contiguous(), gain, mode, ok)
    return ScatterUpdate.apply(base, index, rows, gain, mode, ok)


def gather_rows(index: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """As :func:`vtskip.kernels.reference.gather_rows`, in one launch; gradients for tensors that are not shared alone."""
    return GatherRows.apply(index, *tensors)


def scatter_rows(index: Tensor, bases: Sequence[Tensor], rows: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """As :func:`vtskip.kernels.reference.scatter_rows`, in one launch; differentiable in bases and rows."""
    return ScatterRows.apply(index, *bases, *rows)
