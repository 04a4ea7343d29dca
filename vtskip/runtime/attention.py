"""Attention on gathered rows: queries from fewer rows than keys, and the scores of one row."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vtskip.kernels.rows import gather_rows
from vtskip.plan import RowSet
from vtskip.runtime.masks import backend


def project_kv(attn: nn.Module, normed: Tensor, position_embeddings: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """K (rotated) and V of every row, as the attention itself makes them: ``[B, kv_heads, S, head_dim]`` each."""
    k, v = _heads(attn, "k", normed), attn.v_proj(normed).unflatten(-1, (-1, attn.head_dim)).transpose(1, 2)
    return rotate(attn, k, position_embeddings), v


def _heads(attn: nn.Module, which: str, normed: Tensor) -> Tensor:
    """One projection split into heads, with the per-head norm of attentions that have one."""
    x = getattr(attn, f"{which}_proj")(normed).unflatten(-1, (-1, attn.head_dim))
    norm = getattr(attn, f"{which}_norm", None)
    return (x if norm is None else norm(x)).transpose(1, 2)


def soft_cap(attn: nn.Module) -> float | None:
    """Gemma 2 bends its attention logits to ``cap * tanh(logits / cap)``; sdpa cannot."""
    return getattr(attn, "attn_logit_softcapping", None)


def rotate(attn: nn.Module, x: Tensor, position_embeddings: tuple[Tensor, ...]) -> Tensor:
    rope = sys.modules[type(attn).__module__].apply_rotary_pos_emb
    return rope(x, x[:, :1], *position_embeddings)[0]


@torch.no_grad()
def last_row_scores(attn: nn.Module, normed: Tensor, valid: Tensor, position_embeddings: tuple[Tensor, ...]) -> Tensor:
    """Attention of every sample's last valid row to the rows of this forward, mean over heads: ``[B, S]``, fp32 or wider.

    One query row beside the fast attention; the full attention matrix is never formed.
    """
    batch, length = valid.shape
    place = torch.arange(length, device=valid.device)
    last = (valid * place).amax(1)
    rows = torch.arange(batch, device=valid.device)
    embeddings = tuple(t.expand(batch, -1, -1)[rows, last][:, None] for t in position_embeddings)
    q = rotate(attn, _heads(attn, "q", normed[rows, last][:, None]), embeddings)
    k = rotate(attn, _heads(attn, "k", normed), position_embeddings)
    q = q.unflatten(1, (k.shape[1], -1))  # [B, kv_heads, heads per kv head, 1, head_dim]
    logits = (q @ k[:, :, None].transpose(-1, -2)).squeeze(-2) * attn.scaling
    if (cap := soft_cap(attn)) is not None:
        logits = cap * torch.tanh(logits / cap)
    hidden = ~(valid & (place <= last[:, None]))
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(dtype).masked_fill(hidden[:, None, None], -torch.inf).softmax(-1).mean((1, 2))


def query_attention(
    attn: nn.Module,
    normed: Tensor,
    normed_keys: Tensor | None,
    queries: RowSet,
    key_embeddings: tuple[Tensor, ...],
    query_embeddings: tuple[Tensor, ...],
    update: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    mask_of: Callable[[str], Any],
) -> Tensor:
    """Attention with fewer queries than keys: of the rows that only expose, nothing but K and V is computed.

    Args:
        normed: ``[B, S, hidden]`` after the layer's first norm; ``normed_keys`` its exposed rows, None for all of them.
        key_embeddings, query_embeddings: cos and sin at those rows and at the queries.
        update: ``(k, v) -> (k, v)`` the cache step. mask_of: ``kind of back end -> mask``, called after it.

    Returns:
        ``[B, m, hidden]`` after the output projection. A step without any query only writes K and V.
    """
    batch, keys = normed.shape[0], normed if normed_keys is None else normed_keys
    if queries.width == 0:
        update(*project_kv(attn, keys, key_embeddings))
        return normed[:, :0]
    # Projected in the order of the stock attention: sharded parameters are gathered in call order on every rank.
    q = _heads(attn, "q", gather_rows(normed, queries.flat_index, batch))
    k, v = update(*project_kv(attn, keys, key_embeddings))
    q = rotate(attn, q, query_embeddings)
    name, kind, cap = attn.config._attn_implementation or "sdpa", backend(attn), soft_cap(attn)
    if kind == "flash":  # rows picked out of a sequence have no causal form there
        name = kind = "sdpa" if cap is None else "eager"
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # loaded with the model; slow to import without one

    eager = sys.modules[type(attn).__module__].eager_attention_forward
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)
    out, _ = attend(
        attn,
        q,
        k,
        v,
        mask_of(kind),
        dropout=attn.attention_dropout if attn.training else 0.0,
        scaling=attn.scaling,
        sliding_window=None,  # part of the mask
        softcap=cap,
    )
    return attn.o_proj(out.reshape(batch, queries.width, -1).contiguous())
