"""The operations on gathered rows: one function each, which asks :mod:`vtskip.kernels.choice` for a kernel and runs it.

What every operation computes, and to what error, is said by :mod:`vtskip.kernels.reference`.
"""

from __future__ import annotations

from torch import Tensor

from vtskip.kernels import flash, reference, sdpa
from vtskip.kernels.choice import Call, choose
from vtskip.kernels.packing import PackedRows

__all__ = ["PackedRows", "packed_attention"]


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
