"""Row movement in Triton, each as one launch: gather with RMS norm, and scatter with gain, residual and cast."""

from __future__ import annotations

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
def _scatter_update(Base, Index, Delta, Gain, Out, D: tl.constexpr, DP: tl.constexpr, HAS_GAIN: tl.constexpr):
    i, dims = tl.program_id(0).to(tl.int64), tl.arange(0, DP)
    inside = dims < D
    place = tl.load(Index + i) * D + dims
    add = tl.load(Delta + i * D + dims, mask=inside, other=0.0).to(tl.float32)
    if HAS_GAIN:
        add = add * tl.load(Gain + i).to(tl.float32)
    base = tl.load(Base + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(Out + place, base + add, mask=inside)


@triton.jit
def _scatter_backward(
    DOut, Index, Delta, Gain, DDelta, DGain, D: tl.constexpr, DP: tl.constexpr, HAS_GAIN: tl.constexpr
):
    i, dims = tl.program_id(0).to(tl.int64), tl.arange(0, DP)
    inside = dims < D
    dout = tl.load(DOut + tl.load(Index + i) * D + dims, mask=inside, other=0.0).to(tl.float32)
    if HAS_GAIN:
        delta = tl.load(Delta + i * D + dims, mask=inside, other=0.0).to(tl.float32)
        tl.store(DGain + i, tl.sum(dout * delta, 0))
        dout = dout * tl.load(Gain + i).to(tl.float32)
    tl.store(DDelta + i * D + dims, dout, mask=inside)


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


class ScatterUpdate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, base: Tensor, index: Tensor, delta: Tensor, gain: Tensor | None) -> Tensor:
        base, delta = base.contiguous(), delta.contiguous()
        out = base.clone()
        if len(index):
            _scatter_update[(len(index),)](base, index, delta, gain, out, HAS_GAIN=gain is not None, **_width(base))
        ctx.save_for_backward(index, delta, gain)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        index, delta, gain = ctx.saved_tensors
        dout = grads[0].contiguous()
        ddelta, dgain = torch.empty_like(delta), None if gain is None else torch.empty_like(gain)
        if len(index):
            _scatter_backward[(len(index),)](
                dout, index, delta, gain, ddelta, dgain, HAS_GAIN=gain is not None, **_width(dout)
            )
        return dout, None, ddelta, dgain


def gather_norm(x: Tensor, index: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """As :func:`vtskip.kernels.reference.gather_norm`, differentiable in x and weight; ``index`` distinct."""
    return GatherNorm.apply(x, index, weight, eps, offset)


def scatter_update(base: Tensor, index: Tensor, delta: Tensor, gain: Tensor | None = None) -> Tensor:
    """As :func:`vtskip.kernels.reference.scatter_update`, differentiable in base, delta and gain."""
    return ScatterUpdate.apply(base, index, delta, gain)
