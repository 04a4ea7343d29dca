"""When a layer's rows run packed, and attention over packed rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vtskip.kernels.causal_blocks import by_blocks
from vtskip.kernels.choice import Call, choose, requested
from vtskip.kernels.dispatch import PackedRows
from vtskip.kernels.dispatch import packed_attention as by_kernel
from vtskip.kernels.packing import Segment, segments_of
from vtskip.plan import ON_HOST
from vtskip.runtime.attention import CAPTURE, attended, soft_cap
from vtskip.runtime.cache import is_static
from vtskip.runtime.carried import hooks_everywhere, hooks_of
from vtskip.runtime.keys import Keys
from vtskip.runtime.layout import Layout
from vtskip.runtime.masks import backend
from vtskip.runtime.rows import COMPLETE

if TYPE_CHECKING:
    from vtskip.runtime.execution import Execution


def runs_packed(ex: Execution) -> bool:
    """Whether the layer may be taken apart, and some sample has fewer rows than another, or padding; or queries and keys are
    different rows, or a kernel is asked for, or one of ours is quicker than the model's own attention.

    It may not where someone has patched it, hooked its attention, or asked for attention maps or a loss on padding; under
    ZeRO-3 (ranks would call different modules), and where an empty set runs a filler so that all processes call the same
    modules. Graphs and buckets need shapes that do not depend on the rows, static caches and compact positions have forms of
    their own.
    """
    shared, rows = ex.layer.vtskip.runtime.shared, ex.rows
    refused = shared.attentions or shared.padding_read or rows.bounds or ex.compact or ex.starts is not None
    if refused or not shared.packs or torch.compiler.is_compiling():
        return False
    sets = (ex.attend, ex.expose, ex.plan.ffn)
    wanted = "attention" in requested() or (by_position(ex) if ex.expose is not ex.attend else in_blocks(ex))
    if not wanted and all(s.even and (s.bounds or not rows.is_all(s) or len(s) == ex.batch * ex.length) for s in sets):
        return False
    if is_static(ex.stored) or ex.partitioned or any(s.least and not len(s) for s in sets):
        return False
    return ex.layer.vtskip.runtime.inner is None and not (watched(ex.layer.self_attn) or adapted_by_sample(ex.layer))


def may_gain(layer: nn.Module, x: Tensor) -> bool:
    """Whether a layer that runs every row of ``x`` is worth a look at :func:`in_blocks`; graphs are not split for it."""
    return not torch.compiler.is_compiling() and by_blocks(x.device, x.shape[1]) and backend(layer.self_attn) == "sdpa"


def in_blocks(ex: Execution) -> bool:
    """Whether causal attention runs block by block on this device, and positions alone say who sees whom.

    Not where somebody has a hook inside the layer: rows that lie ``[B, S, D]`` there would come by as ``[1, B * S, D]``.
    """
    fits = by_blocks(ex.rows.vision.device, ex.attend.width)
    if not (fits and ex.kind == "sdpa" and ex.attend.samples is None and in_order(ex, same=True)) or hooks_everywhere():
        return False
    inside = (h for module in ex.layer.modules() if module is not ex.layer for h in hooks_of(module))
    return not any(getattr(hook, "__name__", "") != CAPTURE for hook in inside)


def watched(attn: nn.Module) -> bool:
    """Whether someone wants the attention module itself to be called (accelerate's hooks do with those of its children)."""
    forward = attn.__dict__.get("forward")
    patched = forward is not None and getattr(forward, "__func__", None) is not type(attn).forward
    if (patched and "_hf_hook" not in attn.__dict__) or class_is_patched(type(attn)):
        return True
    return any(getattr(hook, "__name__", "") != CAPTURE for hook in hooks_of(attn))


def adapted_by_sample(layer: nn.Module) -> bool:
    """Whether PEFT was told an adapter for each sample (``adapter_names``), which it finds again by the first dimension."""
    hooks = (hook for module in layer.modules() for hook in module._forward_pre_hooks.values())
    return any("adapter_names" in getattr(hook, "keywords", ()) for hook in hooks)


def class_is_patched(cls: type[nn.Module]) -> bool:
    """Whether the ``forward`` of an attention class comes from elsewhere than the class: somebody has put it there."""
    owner = next(c for c in cls.__mro__ if "forward" in vars(c))
    return getattr(vars(owner)["forward"], "__module__", None) != owner.__module__


def sdpa_is_patched() -> bool:
    """Whether somebody has registered a function of his own under transformers' name for sdpa."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward  # loaded with the model
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return ALL_ATTENTION_FUNCTIONS["sdpa"] is not sdpa_attention_forward


def in_order(ex: Execution, same: bool) -> bool:
    """Whether positions alone say who sees whom, and no mask has to be read.

    The mask that the model has built is then causal, of the padding, and nothing else. Rows of earlier steps, a window that
    does not hold all rows and a soft cap ask for a kernel that knows them. Other implementations than sdpa and flash
    attention keep their masks, dropout the implementation that has it.
    """
    attn, step, free = ex.layer.self_attn, ex.step, by_position(ex)
    if ex.plan.gain_key is not None:
        return False
    name = attn.config._attn_implementation or "sdpa"
    if not (name == "sdpa" or (ex.kind == "flash" and (same or free))):
        return False
    if (attn.training and attn.attention_dropout) or (soft_cap(attn) is not None and not (ex.kind == "flash" and free)):
        return False
    causal = ex.kwargs.get("is_causal")  # of the call, which attention puts before its own
    if not (getattr(attn, "is_causal", True) if causal is None else causal) or (name == "sdpa" and sdpa_is_patched()):
        return False
    if not (step.received is None or ex.layer.vtskip.runtime.shared.plain):
        return False
    if ex.past:
        return free and ex.rows.memo.get(COMPLETE, False)
    return free or step.window is None or ex.length <= step.window


def moves_fused(x: Tensor) -> bool:
    """Whether rows of ``x`` are moved by kernels that do more than move them. Compiled graphs fuse by themselves."""
    return not torch.compiler.is_compiling() and choose("rows", Call(x.device, x.dtype)) == "triton"


def by_position(ex: Execution) -> bool:
    """Whether attention goes to a kernel of ours wherever positions are enough: on CUDA, and where one is asked for."""
    if "attention" in requested():
        return True
    call = Call(ex.rows.vision.device, torch.float32, ex.layer.self_attn.head_dim, order=False)
    return call.device.type == "cuda" and choose("attention", call) == "triton"


def packed_attention(ex: Execution, q: Tensor, k: Tensor, v: Tensor, queries: Layout, keys: Keys) -> Tensor:
    """Attention of rows whose positions say who sees whom.

    Args:
        q: ``[1, heads, T, head_dim]``, padded ``[B, heads, m, head_dim]`` for queries whose counts are bounds; k, v alike, the
            keys of this forward.

    Returns:
        ``[1, T, heads, head_dim]``, or ``[B, m, heads, head_dim]``.
    """
    attn, window = ex.layer.self_attn, ex.step.window
    if window is not None and ex.past + ex.length <= window:
        window = None  # it holds all rows
    if ex.cache is not None:
        cached = keys.update(k, v)
    if ex.past:
        k, v = (t.transpose(1, 2) for t in cached)  # read where they lie
        packed = _cached_rows(ex, queries, keys)
    else:
        k, v = (t.transpose(1, 2).flatten(0, 1) for t in (k, v))
        packed = _packed_rows(ex, queries, keys.layout)
        if ex.kind == "flash" and packed.same_rows and window is None and "attention" not in requested():
            borders: dict[str, Any] = {f"cu_seq_lens_{which}": packed.borders(f"cu_{which}") for which in "qk"}
            borders.update(max_length_q=max(queries.lens), max_length_k=max(queries.lens))
            k, v = k.transpose(0, 1)[None], v.transpose(0, 1)[None]
            return attended(attn, q, k, v, lambda kind: None, in_order=True, **borders)
    q = q.transpose(1, 2).flatten(0, 1)
    return by_kernel(q, k, v, packed, scale=attn.scaling, window=window, softcap=soft_cap(attn))


def _packed_rows(ex: Execution, queries: Layout, keys: Layout) -> PackedRows:
    """Who sees whom; made once for all layers that run the same rows."""
    key, memo = ("packed", queries.rows, keys.rows), ex.rows.memo
    if key not in memo:
        memo[key] = PackedRows(
            queries.lens,
            keys.lens,
            _ascending(queries),
            keys.columns,
            same_rows=queries is keys,
            consecutive=keys.rows is ex.rows.everything,
            segments=_segments(ex, queries, keys),
        )
    return memo[key]


def _segments(ex: Execution, queries: Layout, keys: Layout) -> list[Segment] | None:
    """The runs of text that read all rows, known on the host: what kernels without positions can do."""
    rows = ex.rows
    if queries.rows is not rows.text or keys.rows is not rows.everything or ON_HOST not in rows.memo:
        return None
    vision, valid = rows.memo[ON_HOST]
    return segments_of(valid & ~vision, valid)


def _cached_rows(ex: Execution, queries: Layout, keys: Keys) -> PackedRows:
    """Who sees whom over a cache, which is padded and may hold fillers."""
    assert keys.pos is not None
    samples, slots = keys.pos.shape
    return PackedRows(queries.lens, (slots,) * samples, ex.past + _ascending(queries), keys.pos, keys.ok)


def _ascending(queries: Layout) -> Tensor:
    """Their columns; fillers, which lie in front, stand where the first real row of their sample does."""
    if queries.ok is None:
        return queries.columns
    last = queries.rows.mask.shape[1] - 1
    columns = queries.columns.view(queries.lead).masked_fill(~queries.ok, last)
    return columns.flip(1).cummin(1).values.flip(1).flatten()
