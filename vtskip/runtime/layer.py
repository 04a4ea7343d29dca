"""The ``forward`` of a patched layer: asks the layer's planner which rows run, and has the executor run them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vtskip.models.cls_attention import KINDS, scores_of_rows
from vtskip.plan import ANSWERS, CARRIED, LIVE, SCORES, UNIFORM, LayerPlan, Propagation, RowMap
from vtskip.runtime.attention import last_row_scores
from vtskip.runtime.cache import cache_layer, skip_layer
from vtskip.runtime.execution import Execution
from vtskip.runtime.importance import propagated
from vtskip.runtime.native import LayerRuntime, text_step
from vtskip.runtime.packed import may_gain
from vtskip.runtime.unread import READ, WholeLayer, read_part


def layer_forward(layer: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The ``forward`` of a patched layer."""
    planner = layer.vtskip
    run: LayerRuntime = planner.runtime
    kwargs.update(zip(run.arg_names, args))
    rows, shared = run.shared.rows, run.shared
    if rows is None:
        return text_step(layer, hidden_states, kwargs)
    asked = not isinstance(planner, WholeLayer) and (rows.has_vision or planner.every_step or shared.uniform)
    unread = run.unread if READ in rows.memo else "none"
    apart = shared.packs and (rows.padded or may_gain(layer, hidden_states))
    if not (asked or unread != "none" or apart):
        return text_step(layer, hidden_states, kwargs)
    if rows.vision.device != hidden_states.device:  # the first layer on another device
        rows = shared.rows = rows.to(hidden_states.device)
    plan = planned(layer, rows, hidden_states, kwargs) if asked else LayerPlan.of(rows.everything)
    if shared.uniform:
        for rows_run in (plan.attend, plan.expose, plan.ffn):
            rows_run.run_at_least_one()
    if plan.edit is not None:
        hidden_states = plan.edit
    if rows.bounds:
        for bounded in (plan.attend, plan.expose, plan.ffn, plan.cache):
            bounded.bounds = True
    part = plan
    if unread != "none":
        part = read_part(plan, rows, unread, planner.compact, shared.every_step)
        if shared.uniform:
            for rows_run in (part.attend, part.ffn):
                rows_run.run_at_least_one()
    execution = Execution(layer, rows, part, hidden_states, kwargs)
    ran = execution.slots, execution.attend.samples, part, execution.packs, execution.ordered
    shared.record(run.index, plan, *ran)
    if plan.score:
        out, keys = with_keys(execution, hidden_states)
        if isinstance(plan.score, Propagation):
            rows.memo[SCORES, run.index] = propagated(layer, plan, hidden_states, kwargs, keys)
        else:
            rows.memo[SCORES, run.index] = scores(layer, plan.expose.mask, hidden_states, kwargs, keys)
    else:
        out = execution.run(hidden_states)
    if plan.carry is not None and execution.cache is not None:
        skip_layer(execution.cache, run.index).carry = plan.carry
    return out


def planned(layer: nn.Module, rows: RowMap, x: Tensor, kwargs: dict[str, Any]) -> LayerPlan:
    """The planner's decision, with what it needs to see in the rows' memo."""
    planner, run = layer.vtskip, layer.vtskip.runtime
    stored = cache_layer(kwargs.get("past_key_values"), run.index)
    rows.memo[CARRIED, run.index] = getattr(stored, "carry", None)
    for kind in KINDS:
        if kind in planner.needs and rows.has_vision:
            rows.memo[kind] = scores_of_rows(getattr(run.shared, kind), rows, kind)
    if ANSWERS in planner.needs and run.shared.answers is not None:
        rows.memo[ANSWERS] = run.shared.answers.to(x.device)
    if SCORES in planner.needs and (rows.has_vision or run.shared.uniform):
        rows.memo[SCORES, run.index] = scores(layer, rows.memo.get(LIVE, rows.valid), x, kwargs)
    rows.memo[UNIFORM] = run.shared.uniform
    norm = getattr(layer, run.parts.attn_in)
    seen = (x, norm) if planner.sees == "both" else (norm(x) if planner.sees == "normed" else x,)
    device = "cpu" if x.is_meta else x.device.type
    with torch.autocast(device, enabled=False):  # rows are scored in fp32 whatever the layers run in
        return planner(rows, *seen)


def with_keys(execution: Execution, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The layer's output, and what its ``k_proj`` gave on the way, ``[B, S, ...]`` with zeros where it ran no row.

    None in place of the latter in a compiled graph, which cannot have a hook.
    """
    if torch.compiler.is_compiling():
        return execution.run(x), None
    noted: list[Tensor] = []
    hook = execution.layer.self_attn.k_proj.register_forward_hook(lambda module, args, out: noted.append(out.detach()))
    try:
        out = execution.run(x)
    finally:
        hook.remove()
    if not noted or noted[0].shape[:2] == x.shape[:2]:
        return out, noted[0] if noted else None
    keys = noted[0]
    return out, execution.layout(execution.expose).put(keys.new_zeros(*x.shape[:2], keys.shape[-1]), keys)


def scores(layer: nn.Module, live: Tensor, x: Tensor, kwargs: dict[str, Any], keys: Tensor | None = None) -> Tensor:
    """This layer's attention of every sample's last row to the rows of ``live`` ``[B, S]``: ``[B, S]``, 0 on the others."""
    norm = getattr(layer, layer.vtskip.runtime.parts.attn_in)
    found = last_row_scores(layer.self_attn, norm, x, live, kwargs["position_embeddings"], keys)
    return found.nan_to_num()  # of a sample with no row at all here
