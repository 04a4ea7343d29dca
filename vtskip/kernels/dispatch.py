"""The operations on gathered rows: one function each, which asks :mod:`vtskip.kernels.choice` for a kernel and runs it.

What every operation computes, and to what error, is said by :mod:`vtskip.kernels.reference`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from vtskip.kernels import flash, reference, sdpa
from vtskip.kernels.choice import Call, choose
from vtskip.kernels.packing import PackedRows

__all__ = [
    "PackedRows",
    "decode_attention",
    "gather_norm",
    "gather_rows",
    "packed_attention",
    "ranker",
    "scatter_rows",
    "scatter_update",
]


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: PackedRows,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    kernel: str | None = None,
) -> Tensor:
    """Attention of packed queries on packed keys, causal by position inside each sample; differentiable in q, k and v.

    Args:
        q: ``[Tq, heads, d]``, rotated. k, v: ``[Tk, kv_heads, d]``, each shared by ``heads / kv_heads`` heads in order; or
            padded ``[B, n, kv_heads, d]`` of any strides (a KV cache, transposed), with ``rows.key_ok`` for what is unused.
        rows: who sees whom; made once per pair of row sets (:class:`PackedRows`).
        scale: factor of the logits. window: a query sees keys less than so many positions before it.
        softcap: logits become ``softcap * tanh(logits / softcap)``.
        kernel: one of ``flash``, ``torch``, ``triton``, ``sdpa``, ``flex``, ``reference``; else ``VTSKIP_KERNELS`` or the
            first that can.

    Returns:
        ``[Tq, heads, d]`` in q's type; zeros where a query sees no key. There is no dropout: callers that need it use
        another way.

    Raises:
        ConfigError: the kernel asked for cannot run this call.
    """
    name = choose("attention", _attention_call(q, k, rows, window, softcap), kernel)
    if name in ("flash", "torch"):
        varlen = flash.flash_varlen if name == "flash" else flash.torch_varlen
        return flash.packed_attention(varlen, q, k, v, rows, scale, window, softcap)
    k, v = (t.flatten(0, 1) if t.dim() == 4 and name != "triton" else t for t in (k, v))
    if name == "sdpa":
        return sdpa.packed_attention(q, k, v, rows, scale, window)
    lo, hi = rows.ranges(window)
    if name == "triton":
        from vtskip.kernels.triton_attention import gathered_attention

        return gathered_attention(q, k, v, lo, hi, scale, rows.key_ok, softcap)
    if name == "flex":
        from vtskip.kernels.flex import packed_attention as by_flex

        return by_flex(q, k, v, lo, hi, scale, rows.key_ok, softcap)
    return reference.gathered_attention(q, k, v, lo, hi, scale, rows.key_ok, softcap)


def _attention_call(q: Tensor, k: Tensor, rows: PackedRows, window: int | None, softcap: float | None) -> Call:
    return Call(
        q.device,
        q.dtype,
        head_dim=q.shape[-1],
        order=rows.same_rows or flash.few_segments(rows),
        window=window is not None,
        consecutive=rows.consecutive,
        softcap=softcap is not None,
        masked=rows.key_ok is not None,
        padded=k.dim() == 4,
        grad=q.requires_grad or k.requires_grad,
    )


def decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    length: Tensor | None = None,
    key_ok: Tensor | None = None,
    window: tuple[int, Tensor, Tensor] | None = None,
    softcap: float | None = None,
    kernel: str | None = None,
) -> Tensor:
    """Attention of one new row per sample on a KV cache, read in place; without gradient.

    Args:
        q: ``[B, heads, d]``. k, v: ``[B, kv_heads, slots, d]`` of any strides, the new row included.
        length: ``[B]`` slots in use from the first on, None for all. key_ok: ``[B, slots]``, False on slots that hold no key.
        window: its size, the positions of the slots ``[B, slots]`` and those of the queries ``[B]``.
        softcap, kernel (``triton``, ``sdpa``, ``reference``): as for :func:`packed_attention`.

    Returns:
        ``[B, heads, d]``; zeros where a query sees no key.
    """
    if window is not None:
        size, k_pos, q_pos = window
        near = k_pos > (q_pos - size)[:, None]
        key_ok = near if key_ok is None else key_ok & near
    name = choose("decode", Call(q.device, q.dtype, head_dim=q.shape[-1], softcap=softcap is not None), kernel)
    batch, slots = k.shape[0], k.shape[2]
    if name == "triton":
        from vtskip.kernels.triton_attention import decode_attention as by_triton

        length = torch.full((batch,), slots, dtype=torch.int32, device=q.device) if length is None else length
        return by_triton(q, k, v, length, scale, key_ok, softcap)
    if length is not None:
        used = torch.arange(slots, device=q.device) < length[:, None]
        key_ok = used if key_ok is None else key_ok & used
    if name == "sdpa":
        mask = None if key_ok is None else key_ok[:, None, None]
        grouped = q.shape[1] != k.shape[1]
        options: dict[str, Any] = {"attn_mask": mask, "scale": scale, "enable_gqa": grouped}
        return torch.nn.functional.scaled_dot_product_attention(q[:, :, None], k, v, **options)[:, :, 0]
    k, v = (t.transpose(1, 2).flatten(0, 1) for t in (k, v))
    lo = torch.arange(batch, device=q.device) * slots
    return reference.gathered_attention(
        q, k, v, lo, lo + slots, scale, None if key_ok is None else key_ok.flatten(), softcap
    )


def _rows_module(x: Tensor, kernel: str | None) -> ModuleType:
    """The module whose row operations run; ``torch`` and ``reference`` are the same one."""
    if choose("rows", Call(x.device, x.dtype), kernel) != "triton":
        return reference
    from vtskip.kernels import triton_rows

    return triton_rows


def gather_norm(
    x: Tensor, index: Tensor, weight: Tensor, eps: float, offset: float = 0.0, *, kernel: str | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`vtskip.kernels.reference.gather_norm`."""
    return _rows_module(x, kernel).gather_norm(x, index, weight, eps, offset)


def scatter_update(
    base: Tensor,
    index: Tensor,
    rows: Tensor,
    gain: Tensor | None = None,
    mode: str = "add",
    ok: Tensor | None = None,
    fresh: bool = False,
    *,
    kernel: str | None = None,
) -> Tensor:
    """:func:`vtskip.kernels.reference.scatter_update`."""
    return _rows_module(base, kernel).scatter_update(base, index, rows, gain, mode, ok, fresh)


def gather_rows(index: Tensor, *tensors: Tensor, kernel: str | None = None) -> tuple[Tensor, ...]:
    """:func:`vtskip.kernels.reference.gather_rows`. A shared tensor has a gradient only without Triton."""
    return _rows_module(tensors[0], kernel).gather_rows(index, *tensors)


def scatter_rows(
    index: Tensor, bases: Sequence[Tensor], rows: Sequence[Tensor], *, kernel: str | None = None
) -> tuple[Tensor, ...]:
    """:func:`vtskip.kernels.reference.scatter_rows`."""
    return _rows_module(bases[0], kernel).scatter_rows(index, bases, rows)


def ranker(device: torch.device, kernel: str | None = None) -> Callable[[Tensor, Tensor], Tensor] | None:
    """What ranks rows within groups there (:func:`vtskip.kernels.reference.group_ranks`); None: the routers' own sort."""
    if choose("topk", Call(device, torch.float32), kernel) != "triton":
        return None
    from vtskip.kernels.triton_topk import group_ranks

    return group_ranks
