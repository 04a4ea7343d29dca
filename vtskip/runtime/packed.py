"""When a layer's rows run packed, and attention over packed rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vtskip.kernels.dispatch import PackedRows
from vtskip.kernels.dispatch import packed_attention as by_kernel
from vtskip.runtime.attention import attended, soft_cap
from vtskip.runtime.cache import is_static
from vtskip.runtime.keys import Keys
from vtskip.runtime.layout import Layout

if TYPE_CHECKING:
    from vtskip.runtime.execution import Execution

CAPTURE = "output_capturing_hook"  # transformers' own, idle unless attentions are asked for


def runs_packed(ex: Execution) -> bool:
    """Whether some sample has fewer rows than another, or padding, and the layer may be taken apart.

    It may not where someone has patched it or hooked its attention, under ZeRO-3 (ranks would call different modules) and
    where an empty set runs a filler so that all processes call the same modules. Graphs and buckets need shapes that do not
    depend on the rows, static caches and compact positions have forms of their own.
    """
    shared, rows = ex.layer.vtskip.runtime.shared, ex.rows
    if not shared.packs or rows.bounds or ex.compact or ex.starts is not None or torch.compiler.is_compiling():
        return False
    sets = (ex.attend, ex.expose, ex.plan.ffn)
    if all(s.even and (s.bounds or not rows.is_all(s) or len(s) == ex.batch * ex.length) for s in sets):
        return False
    if is_static(ex.stored) or ex.partitioned or any(s.least and not len(s) for s in sets):
        return False
    return ex.layer.vtskip.runtime.inner is None and not watched(ex.layer.self_attn)


def watched(attn: nn.Module) -> bool:
    """Whether someone wants the attention module itself to be called (accelerate's hooks do with those of its children)."""
    hooks = [*attn._forward_hooks.values(), *attn._forward_pre_hooks.values()]
    hooks += [*attn._backward_hooks.values(), *attn._backward_pre_hooks.values()]
    patched = "forward" in attn.__dict__ and "_hf_hook" not in attn.__dict__
    return patched or any(getattr(h, "__name__", "") != CAPTURE for h in hooks)


def in_order(ex: Execution, same: bool) -> bool:
    """Whether positions alone say who sees whom, and no mask has to be read.

    The mask that the model has built is then causal, of the padding, and nothing else; there are no earlier rows; the
    window, if any, holds all of them. Other implementations than sdpa and flash attention keep their masks, dropout the
    implementation that has it.
    """
    attn, step = ex.layer.self_attn, ex.step
    name = attn.config._attn_implementation or "sdpa"
    if not (name == "sdpa" or (ex.kind == "flash" and same)) or soft_cap(attn) is not None:
        return False
    if attn.training and attn.attention_dropout:
        return False
    if ex.past or not (step.window is None or ex.length <= step.window):
        return False
    return getattr(attn, "is_causal", True) and (step.received is None or ex.layer.vtskip.runtime.shared.plain)


def packed_attention(ex: Execution, q: Tensor, k: Tensor, v: Tensor, queries: Layout, keys: Keys) -> Tensor:
    """Attention of rows that are all of this forward: nothing is padded but what the cache keeps.

    Args:
        q: ``[1, heads, T, head_dim]``, padded ``[B, heads, m, head_dim]`` for queries whose counts are bounds; k, v alike.

    Returns:
        ``[1, T, heads, head_dim]``, or ``[B, m, heads, head_dim]``.
    """
    attn = ex.layer.self_attn
    if ex.cache is not None:
        keys.update(k, v)
    packed = _packed_rows(ex, queries, keys.layout)
    if ex.kind == "flash":
        longest = max(queries.lens)
        lengths = {f"max_length_{which}": longest for which in "qk"}
        borders = {f"cu_seq_lens_{which}": packed.borders(f"cu_{which}") for which in "qk"}
        return attended(attn, q, k, v, lambda kind: None, in_order=True, **lengths, **borders)
    rows = (t.transpose(1, 2).flatten(0, 1) for t in (q, k, v))
    return by_kernel(*rows, packed, scale=attn.scaling)


def _packed_rows(ex: Execution, queries: Layout, keys: Layout) -> PackedRows:
    """Who sees whom; made once for all layers that run the same rows."""
    key, memo = ("packed", queries.rows, keys.rows), ex.rows.memo
    if key not in memo:
        memo[key] = PackedRows(queries.lens, keys.lens, _ascending(queries), keys.columns, same_rows=queries is keys)
    return memo[key]


def _ascending(queries: Layout) -> Tensor:
    """Their columns; fillers, which lie in front, stand where the first real row of their sample does."""
    if queries.ok is None:
        return queries.columns
    last = queries.rows.mask.shape[1] - 1
    columns = queries.columns.view(queries.lead).masked_fill(~queries.ok, last)
    return columns.flip(1).cummin(1).values.flip(1).flatten()
