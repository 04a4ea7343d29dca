"""``gathered_attention`` in Triton: forward, backward without atomics, and split over keys for decoding.

A query block walks only the keys between the smallest ``lo`` and the largest ``hi`` of its rows, a key block only the
queries that can see one of its keys; both follow from the ranges alone, so nothing is read on the host.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_FAR = tl.constexpr(1 << 30)
_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _key_offsets(j, per_sample, stride_b, stride_s):
    """Places of packed keys ``j``: padded keys ``[B, per_sample, ...]`` need no copy to be read as packed ones."""
    return (j // per_sample).to(tl.int64) * stride_b + (j % per_sample).to(tl.int64) * stride_s


@triton.jit
def _bend(logits, cap):
    """``cap * tanh(logits / cap)``. The quotient of exponentials cancels near zero, where the series takes its place."""
    x = logits / cap
    square, fade = x * x, tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - fade) / (1.0 + fade)
    far = tl.where(x < 0, -far, far)
    tail = -17.0 / 315 + square * (62.0 / 2835 - square * (1382.0 / 155925))
    near = x + x * square * (-1.0 / 3 + square * (2.0 / 15 + square * tail))
    return cap * tl.where(square < 0.0625, near, far)


@triton.jit
def _walk(
    acc, total, top, q, K, V, Ok, lo, hi, begin, end, limit, scale, cap, tk, per_sample,
    k_sample, k_row, v_sample, v_row,
    D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr, MASKED: tl.constexpr, HAS_OK: tl.constexpr, HAS_CAP: tl.constexpr,
    COMPUTE: tl.constexpr,
):  # fmt: skip
    """Take up key blocks ``begin`` to ``end``. Without ``MASKED`` every query sees every key of them."""
    dims = tl.arange(0, DP)
    inside = dims < D
    for first in range(begin, end, BN):
        j = first + tl.arange(0, BN)
        there = j < tk
        k = tl.load(
            K + _key_offsets(j, per_sample, k_sample, k_row)[None] + dims[:, None],
            mask=there[None] & inside[:, None], other=0.0,
        ).to(COMPUTE)  # fmt: skip
        v = tl.load(
            V + _key_offsets(j, per_sample, v_sample, v_row)[:, None] + dims[None],
            mask=there[:, None] & inside[None], other=0.0,
        ).to(COMPUTE)  # fmt: skip
        logits = tl.dot(q, k, input_precision="ieee") * scale
        if HAS_CAP:
            logits = _bend(logits, cap)
        logits = logits * _LOG2E
        if MASKED:
            seen = (j[None] >= lo[:, None]) & (j[None] < hi[:, None]) & (j[None] < limit)
            if HAS_OK:
                seen = seen & (tl.load(Ok + j, mask=there, other=0) != 0)[None]
            logits = tl.where(seen, logits, float("-inf"))
        higher = tl.maximum(top, tl.max(logits, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        p = tl.exp2(logits - base[:, None])
        fade = tl.exp2(top - base)
        total = total * fade + tl.sum(p, 1)
        acc = acc * fade[:, None] + tl.dot(p.to(COMPUTE), v, input_precision="ieee")
        top = higher
    return acc, total, top


@triton.jit
def _forward(
    Q, K, V, Lo, Hi, Ok, Out, Lse, scale, cap, tq, tk, per_sample,
    q_row, q_head, k_sample, k_row, k_head, v_sample, v_row, v_head, o_split, o_row, o_head, lse_split, lse_head,
    GROUP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    SPLITS: tl.constexpr, HAS_OK: tl.constexpr, HAS_CAP: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    head, split = tl.program_id(1), tl.program_id(2)
    live, dims = rows < tq, tl.arange(0, DP)
    inside = dims < D
    lo = tl.load(Lo + rows, mask=live, other=_FAR)
    hi = tl.load(Hi + rows, mask=live, other=0)
    start, stop = tl.min(lo), tl.max(hi)
    start = start // BN * BN
    per_split = tl.cdiv(tl.cdiv(tl.maximum(stop - start, 0), BN), SPLITS) * BN
    begin = start + split * per_split
    end = tl.minimum(begin + per_split, stop)
    q = tl.load(
        Q + rows[:, None].to(tl.int64) * q_row + head * q_head + dims[None],
        mask=live[:, None] & inside[None],
        other=0.0,
    ).to(COMPUTE)
    top = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, DP], tl.float32)
    # Between the two borders lie the blocks that all rows see in full: they need no mask.
    left = tl.maximum(tl.cdiv(tl.max(tl.where(live, lo, 0)), BN) * BN, begin)
    right = tl.maximum(tl.minimum(tl.min(tl.where(live, hi, _FAR)), end) // BN * BN, left)
    if HAS_OK:
        left, right = begin, begin
    K += head // GROUP * k_head
    V += head // GROUP * v_head
    acc, total, top = _walk(
        acc, total, top, q, K, V, Ok, lo, hi, begin, tl.minimum(left, end), end, scale, cap, tk, per_sample,
        k_sample, k_row, v_sample, v_row, D, DP, BN, True, HAS_OK, HAS_CAP, COMPUTE,
    )  # fmt: skip
    acc, total, top = _walk(
        acc, total, top, q, K, V, Ok, lo, hi, left, right, end, scale, cap, tk, per_sample,
        k_sample, k_row, v_sample, v_row, D, DP, BN, False, HAS_OK, HAS_CAP, COMPUTE,
    )  # fmt: skip
    acc, total, top = _walk(
        acc, total, top, q, K, V, Ok, lo, hi, right, end, end, scale, cap, tk, per_sample,
        k_sample, k_row, v_sample, v_row, D, DP, BN, True, HAS_OK, HAS_CAP, COMPUTE,
    )  # fmt: skip
    acc = acc / tl.where(total == 0, 1.0, total)[:, None]
    out = Out + split * o_split + rows[:, None].to(tl.int64) * o_row + head * o_head + dims[None]
    tl.store(out, acc, mask=live[:, None] & inside[None])
    lse = tl.where(total == 0, float("-inf"), (top + tl.log2(tl.where(total == 0, 1.0, total))) / _LOG2E)
    tl.store(Lse + split * lse_split + head * lse_head + rows, lse, mask=live)


@triton.jit
def _backward_q(
    Q, K, V, DOut, Lse, Delta, Lo, Hi, Ok, DQ, scale, cap, tq, tk,
    q_row, q_head, k_row, k_head, lse_head,
    GROUP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    HAS_OK: tl.constexpr, HAS_CAP: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    rows, head = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1)
    live, dims = rows < tq, tl.arange(0, DP)
    inside = dims < D
    own = rows[:, None].to(tl.int64) * q_row + head * q_head + dims[None]
    here = live[:, None] & inside[None]
    q, dout = tl.load(Q + own, mask=here, other=0.0).to(COMPUTE), tl.load(DOut + own, mask=here, other=0.0).to(COMPUTE)
    lse = tl.load(Lse + head * lse_head + rows, mask=live, other=float("inf"))
    lse = tl.where(lse == float("-inf"), float("inf"), lse)
    delta = tl.load(Delta + head * lse_head + rows, mask=live, other=0.0)
    lo, hi = tl.load(Lo + rows, mask=live, other=_FAR), tl.load(Hi + rows, mask=live, other=0)
    dq = tl.zeros([BM, DP], tl.float32)
    for first in range(tl.min(lo) // BN * BN, tl.max(hi), BN):
        j = first + tl.arange(0, BN)
        place = j[:, None].to(tl.int64) * k_row + head // GROUP * k_head + dims[None]
        there = (j < tk)[:, None] & inside[None]
        k, v = (
            tl.load(K + place, mask=there, other=0.0).to(COMPUTE),
            tl.load(V + place, mask=there, other=0.0).to(COMPUTE),
        )
        seen = (j[None] >= lo[:, None]) & (j[None] < hi[:, None])
        if HAS_OK:
            seen = seen & (tl.load(Ok + j, mask=j < tk, other=0) != 0)[None]
        logits = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if HAS_CAP:
            logits = _bend(logits, cap)
        p = tl.where(seen, tl.exp(logits - lse[:, None]), 0.0)
        dp = tl.dot(dout, tl.trans(v), input_precision="ieee")
        ds = p * (dp - delta[:, None]) * scale
        if HAS_CAP:
            ds = ds * (1.0 - (logits / cap) * (logits / cap))
        dq += tl.dot(ds.to(COMPUTE), k, input_precision="ieee")
    tl.store(DQ + own, dq, mask=here)


@triton.jit
def _backward_kv(
    Q, K, V, DOut, Lse, Delta, Lo, Hi, Ok, First, Last, DK, DV, scale, cap, tq, tk,
    q_row, q_head, k_row, k_head, lse_head,
    GROUP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    HAS_OK: tl.constexpr, HAS_CAP: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    j, kv_head = tl.program_id(0) * BN + tl.arange(0, BN), tl.program_id(1)
    there, dims = j < tk, tl.arange(0, DP)
    inside = dims < D
    own = j[:, None].to(tl.int64) * k_row + kv_head * k_head + dims[None]
    here = there[:, None] & inside[None]
    k, v = tl.load(K + own, mask=here, other=0.0).to(COMPUTE), tl.load(V + own, mask=here, other=0.0).to(COMPUTE)
    ok = there
    if HAS_OK:
        ok = there & (tl.load(Ok + j, mask=there, other=0) != 0)
    start = tl.min(tl.load(First + j, mask=there, other=_FAR)) // BM * BM
    stop = tl.max(tl.load(Last + j, mask=there, other=0))
    dk, dv = tl.zeros([BN, DP], tl.float32), tl.zeros([BN, DP], tl.float32)
    for member in range(GROUP):
        head = kv_head * GROUP + member
        for first in range(start, stop, BM):
            rows = first + tl.arange(0, BM)
            live = rows < tq
            place = rows[:, None].to(tl.int64) * q_row + head * q_head + dims[None]
            mask = live[:, None] & inside[None]
            q = tl.load(Q + place, mask=mask, other=0.0).to(COMPUTE)
            dout = tl.load(DOut + place, mask=mask, other=0.0).to(COMPUTE)
            lse = tl.load(Lse + head * lse_head + rows, mask=live, other=float("inf"))
            lse = tl.where(lse == float("-inf"), float("inf"), lse)
            delta = tl.load(Delta + head * lse_head + rows, mask=live, other=0.0)
            lo, hi = tl.load(Lo + rows, mask=live, other=_FAR), tl.load(Hi + rows, mask=live, other=0)
            seen = (j[None] >= lo[:, None]) & (j[None] < hi[:, None]) & ok[None]
            logits = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
            if HAS_CAP:
                logits = _bend(logits, cap)
            p = tl.where(seen, tl.exp(logits - lse[:, None]), 0.0)
            dv += tl.dot(tl.trans(p).to(COMPUTE), dout, input_precision="ieee")
            dp = tl.dot(dout, tl.trans(v), input_precision="ieee")
            ds = p * (dp - delta[:, None]) * scale
            if HAS_CAP:
                ds = ds * (1.0 - (logits / cap) * (logits / cap))
            dk += tl.dot(tl.trans(ds).to(COMPUTE), q, input_precision="ieee")
    tl.store(DK + own, dk, mask=here)
    tl.store(DV + own, dv, mask=here)


def blocks(d: int, tq: int, wide: bool) -> dict[str, int]:
    """Block sizes of the forward by a plain rule (autotuning needs a device), ``wide``: products are taken in fp32.

    They fit the shared memory of sm_80. No other grounds stand behind them: they were never measured.
    """
    padded = max(16, triton.next_power_of_2(d))
    if wide:
        rows, keys = (64, 64) if padded <= 64 else (32, 32) if padded <= 128 else (32, 16)
    else:
        rows, keys = (128, 64) if padded <= 128 and tq >= 512 else (64, 64 if padded <= 128 else 32)
    return {"D": d, "DP": padded, "BM": 16 if tq <= 16 else rows, "BN": keys, "num_warps": 8 if rows == 128 else 4}


def backward_blocks(d: int, wide: bool) -> dict[str, int]:
    """The same for the backward kernels."""
    padded = max(16, triton.next_power_of_2(d))
    size = (64 if padded <= 64 else 32 if padded <= 128 else 16) if wide else (64 if padded <= 128 else 32)
    return {"D": d, "DP": padded, "BM": size, "BN": size, "num_warps": 8 if size == 64 and padded > 64 else 4}


def compute_type(dtype: torch.dtype, interpreted: bool) -> Any:
    """What products are taken in. The interpreter's bf16 product is wrong, and fp64 has no tensor cores."""
    if interpreted or dtype not in (torch.float16, torch.bfloat16):
        return tl.float32
    return tl.float16 if dtype == torch.float16 else tl.bfloat16


def _constants(
    q: Tensor, k: Tensor, key_ok: Tensor | None, softcap: float | None, backward: bool = False
) -> dict[str, Any]:
    from triton.runtime.interpreter import InterpretedFunction

    compute = compute_type(q.dtype, isinstance(_forward, InterpretedFunction))
    wide = compute is tl.float32
    sizes = backward_blocks(q.shape[-1], wide) if backward else blocks(q.shape[-1], q.shape[0], wide)
    return {
        **sizes,
        "GROUP": q.shape[1] // k.shape[-2],
        "HAS_OK": key_ok is not None,
        "HAS_CAP": softcap is not None,
        "COMPUTE": compute,
    }


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lo: Tensor,
    hi: Tensor,
    scale: float,
    key_ok: Tensor | None,
    softcap: float | None = None,
    splits: int = 1,
) -> tuple[Tensor, Tensor]:
    """Output ``[Tq, heads, d]`` and log-sum-exp ``[heads, Tq]`` fp32. ``k``, ``v`` packed ``[Tk, kv_heads, d]``, or padded
    ``[B, n, kv_heads, d]`` of any strides with ranges over the ``B * n`` rows (a KV cache is read in place)."""
    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    tq, heads, d = q.shape
    packed = k.dim() == 3
    tk, per_sample = (k.shape[0],) * 2 if packed else (k.shape[0] * k.shape[1], k.shape[1])
    k_strides, v_strides = ((0, *t.stride()[:2]) if packed else t.stride()[:3] for t in (k, v))
    kind = q.dtype if splits == 1 else torch.float32
    out = q.new_empty(splits, tq, heads, d, dtype=kind)
    lse = q.new_empty(splits, heads, tq, dtype=torch.float32)
    constants = _constants(q, k, key_ok, softcap)
    grid = (triton.cdiv(tq, constants["BM"]), heads, splits)
    if tq:
        _forward[grid](
            q, k, v, lo, hi, key_ok, out, lse, scale, softcap or 1.0, tq, tk, max(per_sample, 1), *q.stride()[:2], *k_strides,
            *v_strides, *out.stride()[:3], *lse.stride()[:2], SPLITS=splits, **constants,
        )  # fmt: skip
    if splits == 1:
        return out[0], lse[0]
    whole = lse.logsumexp(0)
    share = (lse - whole.masked_fill(whole.isneginf(), 0)).exp()
    return torch.einsum("sqhd,shq->qhd", out, share).to(q.dtype), whole


class GatheredAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, lo: Tensor, hi: Tensor, *options: Any) -> Tensor:
        scale, key_ok, softcap = options
        out, lse = attend(q, k, v, lo, hi, scale, key_ok, softcap)
        ctx.save_for_backward(q, k, v, out, lse, lo, hi, key_ok)
        ctx.scale, ctx.softcap = scale, softcap
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, lo, hi, key_ok = ctx.saved_tensors
        q, k, v, dout = (t.contiguous() for t in (q, k, v, grads[0]))
        delta = (dout.float() * out.float()).sum(-1).T.contiguous()
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        place = torch.arange(k.shape[0], device=k.device, dtype=hi.dtype)
        first = torch.searchsorted(hi, place, right=True).int()
        last = torch.searchsorted(lo, place, right=True).int()
        shared = (*q.stride()[:2], *k.stride()[:2], lse.stride(0))
        c = _constants(q, k, key_ok, ctx.softcap, backward=True)
        inputs = (q, k, v, dout, lse, delta, lo, hi, key_ok)
        sizes = (ctx.scale, ctx.softcap or 1.0, q.shape[0], k.shape[0])
        if len(q):
            _backward_q[(triton.cdiv(q.shape[0], c["BM"]), q.shape[1])](*inputs, dq, *sizes, *shared, **c)
        if len(k):
            grid = (triton.cdiv(k.shape[0], c["BN"]), k.shape[1])
            _backward_kv[grid](*inputs, first, last, dk, dv, *sizes, *shared, **c)
        return dq, dk, dv, *(None,) * 5


def gathered_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lo: Tensor,
    hi: Tensor,
    scale: float,
    key_ok: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """As :func:`vtskip.kernels.reference.gathered_attention`, differentiable in q, k and v. Padded ``[B, n, kv_heads, d]``
    keys are read in place where no gradient is asked for."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v)):
        k, v = (t.flatten(0, 1) if t.dim() == 4 else t for t in (k, v))
        return GatheredAttention.apply(q, k, v, lo, hi, scale, key_ok, softcap)
    return attend(q, k, v, lo, hi, scale, key_ok, softcap)[0]


def decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    length: Tensor,
    scale: float,
    key_ok: Tensor | None = None,
    softcap: float | None = None,
    splits: int | None = None,
) -> Tensor:
    """One new row per sample against a cache: ``q`` ``[B, heads, d]``, ``k``, ``v`` ``[B, kv_heads, slots, d]`` as a KV
    cache holds them, ``length`` ``[B]`` slots in use, ``key_ok`` ``[B, slots]``. Without gradient. -> ``[B, heads, d]``.

    Keys are split over programs, so that a single row fills the device: one for every 256 slots, up to 16, or ``splits``.
    """
    batch, slots = k.shape[0], k.shape[2]
    splits = splits or max(1, min(16, slots // 256))
    lo = torch.arange(batch, device=q.device, dtype=torch.int32) * slots
    ok = None if key_ok is None else key_ok.reshape(-1)
    return attend(q, k.transpose(1, 2), v.transpose(1, 2), lo, (lo + length).int(), scale, ok, softcap, splits)[0]
