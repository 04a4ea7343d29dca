"""An independent masked dense execution of any method: every row through everything, skipping only by masks.

Nothing of ``vtskip.runtime`` is used. The rows come from how the batch was made, the plans from the method's own planners
(which decide, and nothing more); attention, FFN, gains and edits are applied here to all rows and chosen by ``torch.where``.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.tiny import IMAGE_ID, VIDEO_ID, Tiny
from vtskip.plan import CARRIED, LIVE, SCORES, DecoderShape, LayerPlan, Propagation, RowMap, View

TILED = {  # the images of ``tiny_families.ANYRES`` by their rows: side, tiles, what is cut off, lines
    16 + 4 * 8 + 4: View(4, 1, 2, 0, 0, 4, 8),
    16 + 8 * 4 + 8: View(4, 2, 1, 0, 0, 8, 4),
}
SANDWICH = ("post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
NORMS = {  # after attention, before the FFN, after the FFN
    "Gemma2DecoderLayer": SANDWICH,
    "Gemma3DecoderLayer": SANDWICH,
    "Glm4vTextDecoderLayer": ("post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"),
}


def rows_of(family: Tiny, kinds: list[str], side: str = "left") -> RowMap:
    """Where the vision rows of ``family.batch(kinds, side)`` are, from the samples it is made of."""
    samples = [family.sample(kind) for kind in kinds]
    length = max(len(ids) for ids, _, _ in samples)
    vision, valid = np.zeros((len(kinds), length), bool), np.zeros((len(kinds), length), bool)
    for b, (ids, _, _) in enumerate(samples):
        places = slice(length - len(ids), length) if side == "left" else slice(0, len(ids))
        vision[b, places] = np.isin(ids, (IMAGE_ID, VIDEO_ID))
        valid[b, places] = True
    rows = RowMap.build(vision, valid, [groups for _, _, groups in samples])
    if family.name == "llava_next":
        rows.views = tuple(tuple(TILED[groups] for groups in sizes) for _, _, sizes in samples)
    return rows


def softmax_of_last(attn: nn.Module, normed: Tensor, valid: Tensor, embeddings: tuple[Tensor, Tensor]) -> Tensor:
    """Full attention maps, of which one query row per sample is read: ``[B, S]``, mean over heads."""
    maps = causal_logits(attn, normed, valid, embeddings).softmax(-1).mean(1)
    last = torch.tensor([int(row.nonzero().max()) for row in valid])
    return maps[torch.arange(len(valid)), last]


def moved_mass(
    attn: nn.Module, normed: Tensor, valid: Tensor, embeddings: tuple[Tensor, Tensor], how: Propagation
) -> Tensor:
    """Full attention maps, sharpened, and a power of each: ``[B, S]``, root mean square over heads."""
    maps = (causal_logits(attn, normed, valid, embeddings) / how.temperature).softmax(-1)
    maps = torch.where(valid[:, None, :, None], maps, 0.0)
    start = valid.to(maps.dtype) / valid.sum(1, keepdim=True)
    mass = start[:, None, None] @ torch.linalg.matrix_power(maps, how.steps)
    return mass.squeeze(2).square().mean(1).sqrt()


def key_weighted(
    attn: nn.Module, normed: Tensor, valid: Tensor, embeddings: tuple[Tensor, Tensor], gain: Tensor
) -> Tensor:
    """Attention under weights of its keys, by full maps; each row has weight 1 for itself."""
    logits = causal_logits(attn, normed, valid, embeddings)
    itself = torch.eye(logits.shape[-1], dtype=torch.bool)
    maps = logits.exp() * torch.where(itself, 1.0, gain[:, None, None])
    v = attn.v_proj(normed).unflatten(-1, (-1, attn.head_dim)).transpose(1, 2)
    out = (maps / maps.sum(-1, keepdim=True)) @ v.repeat_interleave(logits.shape[1] // v.shape[1], 1)
    return attn.o_proj(out.transpose(1, 2).flatten(2))


def causal_logits(attn: nn.Module, normed: Tensor, valid: Tensor, embeddings: tuple[Tensor, Tensor]) -> Tensor:
    """``[B, heads, S, S]``; rows that are not ``valid`` are seen by nobody but themselves."""
    length = valid.shape[1]
    q, k = (getattr(attn, f"{n}_proj")(normed).unflatten(-1, (-1, attn.head_dim)) for n in "qk")
    q, k = (getattr(attn, f"{n}_norm", nn.Identity())(x).transpose(1, 2) for n, x in (("q", q), ("k", k)))
    q, k = sys.modules[type(attn).__module__].apply_rotary_pos_emb(q, k, *embeddings)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    visible = torch.ones(length, length, dtype=torch.bool).tril() & valid[:, None, None, :]
    visible = visible | torch.eye(length, dtype=torch.bool)
    logits = q @ k.transpose(-1, -2) * attn.scaling
    if (cap := getattr(attn, "attn_logit_softcapping", None)) is not None:
        logits = cap * torch.tanh(logits / cap)
    return logits.masked_fill(~visible, -torch.inf)


def masked_layer(
    layer: nn.Module, planner: nn.Module, index: int, rows: RowMap, decoder: nn.Module, x: Tensor, kwargs: Any
):
    """One layer on all rows, as ``X' = gain_row (X + attend gain_attn Attn + ffn gain_ffn FFN)`` says."""
    attn_out, ffn_in, ffn_out = NORMS.get(type(layer).__name__, (None, "post_attention_layernorm", None))
    normed = layer.input_layernorm(x)
    rows.memo[CARRIED, index] = None
    if SCORES in planner.needs:
        with torch.no_grad():
            live = rows.memo.get(LIVE, rows.valid)
            rows.memo[SCORES, index] = softmax_of_last(layer.self_attn, normed, live, kwargs["position_embeddings"])
    seen = (x, layer.input_layernorm) if planner.sees == "both" else (normed if planner.sees == "normed" else x,)
    plan: LayerPlan = planner(rows, *seen)
    if plan.edit is not None:
        x = plan.edit
        normed = layer.input_layernorm(x)
    attend, expose, ffn = plan.attend.mask, plan.expose.mask, plan.ffn.mask
    if plan.score:
        with torch.no_grad():
            by = softmax_of_last if plan.score is True else partial(moved_mass, how=plan.score)
            live = expose if plan.score is True else attend
            rows.memo[SCORES, index] = by(layer.self_attn, normed, live, kwargs["position_embeddings"])
    mask, length = kwargs["attention_mask"], x.shape[1]
    allowed = torch.ones(length, length, dtype=torch.bool).tril()[None, None] if mask is None else mask
    if allowed.dtype != torch.bool:
        allowed = allowed > torch.finfo(allowed.dtype).min / 2
    # A row that asks nothing sees itself, so that no softmax is empty; its result is not used.
    allowed = (allowed & expose[:, None, None, :]) | (torch.eye(length, dtype=torch.bool) & ~attend[:, None, :, None])
    embeddings = kwargs["position_embeddings"]
    if planner.compact:
        embeddings = decoder.rotary_emb(x, (attend.long().cumsum(1) - 1).clamp(min=0))
    if layer.self_attn.config._attn_implementation == "eager":
        allowed = torch.where(allowed, 0.0, torch.finfo(x.dtype).min).to(x.dtype)
    given = {**kwargs, "attention_mask": allowed, "position_embeddings": embeddings, "past_key_values": None}
    if plan.gain_key is None:
        delta, _ = layer.self_attn(hidden_states=normed, **given)
    else:
        delta = key_weighted(layer.self_attn, normed, rows.valid, embeddings, plan.gain_key)
    delta = delta if attn_out is None else getattr(layer, attn_out)(delta)
    middle = torch.where(attend[..., None], x + gained(delta, plan.gain_attn), x)
    delta = layer.mlp(getattr(layer, ffn_in)(middle))
    delta = delta if ffn_out is None else getattr(layer, ffn_out)(delta)
    out = torch.where(ffn[..., None], middle + gained(delta, plan.gain_ffn), middle)
    if plan.gain_row is not None:
        weight = plan.gain_row[..., None].to(x.dtype)
        weighed = weight * out if plan.gain_on == "output" else x + weight * (out - x)
        everywhere = plan.gain_skipped or not plan.one_set
        out = weighed if everywhere else torch.where(attend[..., None], weighed, out)
    return out, plan.aux


def gained(delta: Tensor, gain: Tensor | None) -> Tensor:
    return delta if gain is None else delta * gain[..., None].to(delta.dtype)


@contextlib.contextmanager
def masked(model: nn.Module, planners: list[nn.Module | None], rows: RowMap) -> Iterator[list[Tensor]]:
    """``model`` with its decoder layers run by :func:`masked_layer`; yields the auxiliary losses of its forwards."""
    decoder, losses = model.get_decoder(), []

    def forward_of(layer, planner, index):
        def forward(x, **kwargs):
            out, aux = masked_layer(layer, planner, index, rows, decoder, x, kwargs)
            losses.extend([] if aux is None else [aux])
            return out

        return forward

    for i, (layer, planner) in enumerate(zip(decoder.layers, planners)):
        if planner is not None and (rows.has_vision or planner.every_step):
            layer.forward = forward_of(layer, planner, i)
    try:
        yield losses
    finally:
        for layer in decoder.layers:
            layer.__dict__.pop("forward", None)


def shape_for(model: nn.Module) -> DecoderShape:
    config = model.get_decoder().config
    heads = config.num_attention_heads
    head_dim = model.get_decoder().layers[0].self_attn.head_dim
    return DecoderShape(
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        heads,
        config.num_key_value_heads or heads,
        head_dim,
        config.vocab_size,
    )
