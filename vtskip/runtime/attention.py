"""Attention on gathered rows: queries from fewer rows than keys, and the scores of one row."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vtskip.runtime.masks import backend

KV = tuple[Tensor, Tensor]
CAPTURE = "output_capturing_hook"  # transformers' own, idle unless attentions are asked for


def project_kv(
    attn: nn.Module, normed: Tensor, position_embeddings: tuple[Tensor, ...], projected: KV | None = None
) -> KV:
    """K (rotated) and V of every row, as the attention itself makes them: ``[B, kv_heads, S, head_dim]`` each.

    ``projected``: what its two projections have given, ``[B, S, kv_heads * head_dim]`` each, if that is there already.
    """
    raw_k, v = projected or (attn.k_proj(normed), attn.v_proj(normed))
    return rotate(attn, _split(attn, "k", raw_k), position_embeddings), v.unflatten(-1, (-1, attn.head_dim)).transpose(
        1, 2
    )


def _heads(attn: nn.Module, which: str, normed: Tensor) -> Tensor:
    """One projection split into heads, with the per-head norm of attentions that have one."""
    return _split(attn, which, getattr(attn, f"{which}_proj")(normed))


def _split(attn: nn.Module, which: str, projected: Tensor) -> Tensor:
    x = projected.unflatten(-1, (-1, attn.head_dim))
    norm = getattr(attn, f"{which}_norm", None)
    return (x if norm is None else norm(x)).transpose(1, 2)


def soft_cap(attn: nn.Module) -> float | None:
    """Gemma 2 bends its attention logits to ``cap * tanh(logits / cap)``; sdpa cannot."""
    return getattr(attn, "attn_logit_softcapping", None)


def rotate(attn: nn.Module, x: Tensor, position_embeddings: tuple[Tensor, ...]) -> Tensor:
    rope = sys.modules[type(attn).__module__].apply_rotary_pos_emb
    return rope(x, x[:, :0], *position_embeddings)[0]


@torch.no_grad()
def last_row_scores(
    attn: nn.Module,
    norm: nn.Module,
    x: Tensor,
    valid: Tensor,
    position_embeddings: tuple[Tensor, ...],
    projected: Tensor | None = None,
) -> Tensor:
    """Attention of every sample's last valid row to the rows of this forward, mean over heads: ``[B, S]``, fp32 or wider.

    One query row beside the fast attention; the full attention matrix is never formed.

    Args:
        x: ``[B, S, hidden]``, what enters the layer; ``norm`` its first norm. valid: ``[B, S]``.
        projected: what ``k_proj`` has given for these rows, ``[B, S, kv_heads * head_dim]``, if that is there already.
    """
    batch, length = valid.shape
    place = torch.arange(length, device=valid.device)
    last = (valid * place).amax(1)
    rows = torch.arange(batch, device=valid.device)
    embeddings = tuple(t.expand(batch, -1, -1)[rows, last][:, None] for t in position_embeddings)
    q = rotate(attn, _heads(attn, "q", norm(x[rows, last][:, None])), embeddings)
    k = rotate(attn, _split(attn, "k", attn.k_proj(norm(x)) if projected is None else projected), position_embeddings)
    q = q.unflatten(1, (k.shape[1], -1))  # [B, kv_heads, heads per kv head, 1, head_dim]
    logits = (q @ k[:, :, None].transpose(-1, -2)).squeeze(-2) * attn.scaling
    if (cap := soft_cap(attn)) is not None:
        logits = cap * torch.tanh(logits / cap)
    hidden = ~(valid & (place <= last[:, None]))
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(dtype).masked_fill(hidden[:, None, None], -torch.inf).softmax(-1).mean((1, 2))


def query_heads(attn: nn.Module, normed: Tensor) -> Tensor:
    """Q before its rotation, ``[B, heads, m, head_dim]``."""
    return _heads(attn, "q", normed)


def attended(
    attn: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask_of: Callable[[str], Any], in_order: bool, **more: Any
) -> Tensor:
    """``[B, m, heads, head_dim]`` by the implementation the model is set to.

    Args:
        q: ``[B, heads, m, head_dim]``, k, v ``[B, kv_heads, n, head_dim]``, rotated.
        mask_of: ``kind of back end -> mask``. in_order: queries and keys are the same rows. Flash attention has a causal form
            of no others: those run on sdpa, or on eager attention where the logits are soft-capped.
        more: keyword arguments for the implementation.
    """
    name, kind, cap = attn.config._attn_implementation or "sdpa", backend(attn), soft_cap(attn)
    if kind == "flash" and not in_order:
        name = kind = "sdpa" if cap is None else "eager"
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # loaded with the model; slow to import without one

    eager = sys.modules[type(attn).__module__].eager_attention_forward
    out, weights = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)(
        attn,
        q,
        k,
        v,
        mask_of(kind),
        dropout=attn.attention_dropout if attn.training else 0.0,
        scaling=attn.scaling,
        sliding_window=None,  # part of the mask
        softcap=cap,
        **more,
    )
    if weights is not None:
        for hook in attn._forward_hooks.values():
            if getattr(hook, "__name__", "") == CAPTURE:
                hook(attn, (), (out, weights))
    return out
