"""Packed attention by kernels that know order but no positions: flash-attn 2 and 3, and torch's own variable-length one.

Right where queries and keys are the same rows. Other row sets run in :class:`~vtskip.kernels.packing.Segment` pieces: their
causal diagonal ends at the bottom right, so a run of text that sees all rows before it needs nothing else.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vtskip.kernels.packing import PackedRows
from vtskip.rowset import on_device

Varlen = Callable[..., Tensor]


def packed_attention(
    varlen: Varlen,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: PackedRows,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """See :func:`vtskip.kernels.dispatch.packed_attention`; ``varlen`` of :func:`flash_varlen` or :func:`torch_varlen`."""
    options = {"scale": scale, "window": window, "softcap": softcap}
    if rows.same_rows:
        longest, borders = max(rows.lens_q, default=0), rows.borders("cu_q")
        return varlen(q, k, v, borders, borders, longest, longest, **options) if longest else torch.zeros_like(q)
    assert rows.segments is not None
    parts = []
    for q0, q1, k0, k1 in rows.segments:
        borders, keys = _pair(q1 - q0, q.device), _pair(k1 - k0, q.device)
        parts.append(varlen(q[q0:q1], k[k0:k1], v[k0:k1], borders, keys, q1 - q0, k1 - k0, **options))
    return torch.cat(parts) if parts else torch.zeros_like(q)


def few_segments(rows: PackedRows) -> bool:
    """Whether launching one kernel per segment is reasonable: two per sample, text before and after its vision rows."""
    return rows.segments is not None and 0 < len(rows.segments) <= min(2 * len(rows.lens_q), 8)


@functools.lru_cache(256)
def _pair(length: int, device: torch.device) -> Tensor:
    return on_device((0, length), device).int()


def flash_varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, *,
    scale: float, window: int | None, softcap: float | None,
) -> Tensor:  # fmt: skip
    """flash-attn's kernel, 3 before 2 where both are installed and the device has it."""
    options: dict[str, Any] = {"softmax_scale": scale, "causal": True}
    if window is not None:
        options["window_size"] = (window - 1, 0)
    if softcap is not None:
        options["softcap"] = softcap
    out = flash_function(q.device)(
        q, k, v, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, max_seqlen_q=max_q, max_seqlen_k=max_k, **options
    )
    return out[0] if isinstance(out, tuple) else out  # flash-attn 3 returned the log-sum-exp too for a while


def flash_function(device: torch.device) -> Callable[..., Any]:
    from vtskip.kernels.choice import capability, installed

    if installed("flash_attn_interface") and capability(device) >= (9, 0):
        from flash_attn_interface import flash_attn_varlen_func
    else:
        from flash_attn import flash_attn_varlen_func
    return flash_attn_varlen_func


@functools.cache
def torch_parameters() -> frozenset[str]:
    """Parameters of ``varlen_attn`` in this torch; empty where there is none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(inspect.signature(varlen_attn).parameters)


def torch_varlen_lacks() -> str:
    """Why torch's kernel cannot be used, or an empty string."""
    if not torch_parameters():
        return f"torch {torch.__version__} has no varlen_attn"
    if not {"scale", "window_size"} <= torch_parameters():
        return f"torch {torch.__version__} has a varlen_attn without scale or window_size"
    return ""


def torch_varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, *,
    scale: float, window: int | None, softcap: float | None,
) -> Tensor:  # fmt: skip
    """torch's kernel. Grouped heads are repeated where this release does not take them."""
    assert softcap is None
    from torch.nn.attention.varlen import varlen_attn

    options: dict[str, Any] = {"scale": scale, "window_size": (-1 if window is None else window - 1, 0)}
    group = q.shape[1] // k.shape[1]
    if group > 1:
        if "enable_gqa" in torch_parameters():
            options["enable_gqa"] = True
        else:
            k, v = (t.repeat_interleave(group, dim=1) for t in (k, v))
    return varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k, **options)
