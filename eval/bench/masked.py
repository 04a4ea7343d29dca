"""A plan run as the research codes run it: every row is computed, masks say who is seen and whose result counts.

The results are those of the skipping execution; the work is that of the dense model. It is what skipping is compared with.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vtskip.errors import ConfigError
from vtskip.methods import MethodSpec, get_method
from vtskip.models.families import decoder_of, shape_of
from vtskip.models.layers import parts_of
from vtskip.plan import SCORES, VIT_CLS, VIT_LOGITS, RowMap

_NOT = "a method that ranks by attention, moves rows or numbers them anew is not run by masks alone"


@contextmanager
def masked(model: Any, method: MethodSpec, rows: RowMap) -> Iterator[None]:
    """``model`` with ``method`` by masks, for forwards without a cache or with an empty one.

    Raises:
        ConfigError: a method that looks at attention scores, moves rows or numbers them anew.
    """
    decoder, _ = decoder_of(model)
    planners = get_method(method).planners(shape_of(decoder))
    if any(p is not None and (p.needs & {SCORES, VIT_CLS, VIT_LOGITS} or p.score or p.compact) for p in planners):
        raise ConfigError(f"{method}: {_NOT}")
    changed = [(layer, planner) for layer, planner in zip(decoder.layers, planners) if planner is not None]
    for layer, planner in changed:
        layer.forward = functools.partial(masked_layer, layer, planner.to(next(layer.parameters()).device), rows)
    try:
        yield
    finally:
        for layer, _ in changed:
            del layer.forward


def masked_layer(layer: Any, planner: nn.Module, rows: RowMap, x: Tensor, **kwargs: Any) -> Tensor:
    """``X' = gain_row (X + attend gain_attn Attn + ffn gain_ffn FFN)`` with every product over all rows."""
    if x.shape[1] != rows.valid.shape[1]:  # a row decoded later
        return type(layer).forward(layer, x, **kwargs)
    norms = parts_of(layer)

    def norm(name: str | None, value: Tensor) -> Tensor:
        return value if name is None else getattr(layer, name)(value)

    normed = norm(norms.attn_in, x)
    more = (getattr(layer, norms.attn_in),) if planner.sees == "both" else ()
    plan = planner(rows, normed if planner.sees == "normed" else x, *more)
    if plan.score or plan.edit is not None:
        raise ConfigError(_NOT)
    seen = kwargs.pop("attention_mask", None)
    allowed = _allowed(seen, rows, plan.attend.mask, plan.expose.mask, x)
    delta, _ = layer.self_attn(hidden_states=normed, attention_mask=allowed, **kwargs)
    y = _where(plan.attend.mask, x, x + _gained(norm(norms.attn_out, delta), plan.gain_attn))
    delta = norm(norms.ffn_out, layer.mlp(norm(norms.ffn_in, y)))
    y = _where(plan.ffn.mask, y, y + _gained(delta, plan.gain_ffn))
    if plan.gain_row is None:
        return y
    weight = plan.gain_row[..., None].to(y.dtype)
    weighed = weight * y if plan.gain_on == "output" else x + weight * (y - x)
    return weighed if plan.gain_skipped or not plan.one_set else _where(plan.attend.mask, y, weighed)


def _allowed(seen: Tensor | None, rows: RowMap, attend: Tensor, expose: Tensor, x: Tensor) -> Tensor:
    """``[B, 1, S, S]`` bool: causal, exposed columns. A row that asks nothing sees itself, so that no softmax is empty."""
    length = x.shape[1]
    square = torch.ones(length, length, dtype=torch.bool, device=x.device)
    causal = square.tril()[None, None] if seen is None else seen if seen.dtype == torch.bool else seen >= 0
    own = torch.eye(length, dtype=torch.bool, device=x.device)
    return (causal & expose[:, None, None]) | (own & ~(attend & rows.valid)[:, None, :, None])


def _where(mask: Tensor, old: Tensor, new: Tensor) -> Tensor:
    return torch.where(mask[..., None], new, old)


def _gained(delta: Tensor, gain: Tensor | None) -> Tensor:
    return delta if gain is None else delta * gain[..., None].to(delta.dtype)
