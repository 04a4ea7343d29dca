"""Attention back ends on a CPU: exact replacements of the flash-attn functions, put under Hugging Face's own wrapper code.

The wrapper (padding, packing, sliding windows, keyword handling) is the real one; only the kernels are exchanged. They follow
the semantics of flash-attn 2.1 and later: the causal diagonal ends at the bottom right corner, windows count key slots, and a
query without any visible key gives zeros.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

NAME = "flash_attention_2"


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
) -> Tensor:
    """``q`` ``[B, m, heads, head_dim]``, ``k`` and ``v`` ``[B, n, kv_heads, head_dim]``."""
    assert not dropout_p and not softcap
    m, n, groups = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
    k, v = (t.repeat_interleave(groups, dim=2).transpose(1, 2) for t in (k, v))
    scores = q.transpose(1, 2) @ k.transpose(-1, -2) * (softmax_scale or q.shape[-1] ** -0.5)
    distance = torch.arange(n)[None, :] - (torch.arange(m)[:, None] + n - m)  # key slot minus the query's own slot
    visible = distance <= 0 if causal else torch.ones(m, n, dtype=torch.bool)
    left, right = window_size
    if left >= 0:
        visible = visible & (distance >= -left)
    if right >= 0:
        visible = visible & (distance <= right)
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num(0.0) if n else scores
    return (weights @ v).transpose(1, 2)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
) -> Tensor:
    """The same over sequences packed into ``[T, heads, head_dim]``."""
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32 and len(cu_seqlens_q) == len(cu_seqlens_k)
    assert int(cu_seqlens_q[-1]) == len(q) and int(cu_seqlens_k[-1]) == len(k) == len(v)
    assert int(cu_seqlens_q.diff().max()) <= int(max_seqlen_q) and int(cu_seqlens_k.diff().max()) <= int(max_seqlen_k)
    options: dict[str, Any] = {"dropout_p": dropout_p, "softmax_scale": softmax_scale, "causal": causal}
    out = torch.zeros_like(q)
    spans = zip(*(zip(cu[:-1].tolist(), cu[1:].tolist()) for cu in (cu_seqlens_q, cu_seqlens_k)))
    for (a, b), (c, d) in spans:
        out[a:b] = flash_attn_func(q[None, a:b], k[None, c:d], v[None, c:d], window_size=window_size, **options)[0]
    return out


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the wrapper load the stand-in as flash-attn 2, for one test."""
    from transformers import modeling_flash_attention_utils as utils

    functions = (flash_attn_func, flash_attn_varlen_func, None, utils._pad_input, utils._unpad_input)
    monkeypatch.setattr(utils, "_lazy_imports", lambda *args, **kwargs: functions)
    for name in ("_loaded_implementation", "_flash_fn", "_flash_varlen_fn", "_flash_with_kvcache_fn", "_pad_fn"):
        monkeypatch.setattr(utils, name, None)  # restored afterwards: no other test sees the stand-in
    for name in ("_unpad_fn", "_process_flash_kwargs_fn", "_process_with_kvcache_kwargs_fn"):
        monkeypatch.setattr(utils, name, None, raising=False)  # not in every release


def uncompiled_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let flex attention and its masks run uncompiled for one test: compiling them for a CPU takes minutes."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    from transformers import masking_utils
    from transformers.integrations import flex_attention as hf_flex

    def plain(*args: Any, training: bool = False, **kwargs: Any) -> Any:
        return flex_attention(*args, **kwargs)

    def mask(*args: Any, **kwargs: Any) -> Any:
        return create_block_mask(*args, **{**kwargs, "_compile": False})

    monkeypatch.setattr(hf_flex, "compile_friendly_flex_attention", plain)
    monkeypatch.setattr(masking_utils, "create_block_mask", mask)
