"""Rows nothing reads: where logits of the last rows alone are asked for, the last layer needs Q, O and FFN of no others."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from threading import get_ident
from typing import Any

import torch
from torch import nn

from vtskip.plan import LayerPlan, RowMap, RowSet
from vtskip.runtime.stats import StepState

ARGUMENT = "logits_to_keep"
READERS = ("output_hidden_states", "output_attentions")  # these show what the last layer makes of every row


class WholeLayer(nn.Module):
    """Planner of a last layer that the method leaves as it is."""

    sees, every_step, compact, needs = "stream", False, False, frozenset[str]()

    def forward(self, rows: RowMap, hidden: torch.Tensor) -> LayerPlan:
        return LayerPlan.of(rows.everything)


@dataclass
class LogitRows:
    """Pre-hook and hook of a causal model: how many of its last rows a forward wants logits of."""

    state: StepState
    arg_names: tuple[str, ...]

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = {**dict(zip(self.arg_names, args)), **kwargs}
        rows = inputs.get(ARGUMENT)
        config: Any = module.config
        shown = any(
            given if (given := inputs.get(name)) is not None else getattr(c, name, False)
            for name in READERS
            for c in (config, config.get_text_config())
        )
        wanted = rows if type(rows) is int and rows > 0 and not (shown or module.training) else 0
        self.state.asked = (get_ident(), wanted)

    def after(self, module: nn.Module, *_: Any) -> None:
        self.state.asked = (0, 0)

    def register(self, model: nn.Module) -> list[Any]:
        return [
            model.register_forward_pre_hook(self.before, with_kwargs=True),
            model.register_forward_hook(self.after, always_call=True),
        ]


def logit_rows_hooks(model: nn.Module, state: StepState) -> list[Any]:
    """Hooks of a model whose forward takes ``logits_to_keep``; none for others."""
    names = tuple(inspect.signature(type(model).forward).parameters)[1:]
    return LogitRows(state, names).register(model) if ARGUMENT in names else []


def read_part(plan: LayerPlan, rows: RowMap, last: int, compact: bool) -> LayerPlan:
    """``plan`` for the ``last`` columns alone; K, V and cache stay. ``plan`` itself where that is not worth it.

    How many of a sample's rows lie there is not asked of the device: the counts are upper bounds.
    """
    attend, length = plan.attend, rows.valid.shape[1]
    odd = compact or rows.bounds or (plan.gain_skipped and plan.gain_on == "delta")
    if last >= length or odd or not attend.width or attend.packed is not attend:
        return plan
    columns = torch.arange(length, device=rows.valid.device) >= length - last

    def cut(part: RowSet) -> RowSet:
        few = RowSet(part.mask & columns, [min(n, last) for n in part.counts])
        few.bounds = True
        return few

    few, gain = cut(attend), plan.gain_row
    if gain is not None and plan.one_set and not plan.gain_skipped:  # which weighs the rows it runs, not the others
        gain = torch.where(attend.mask, gain, 1.0)
    return replace(plan, attend=few, ffn=few if plan.ffn is attend else cut(plan.ffn), gain_row=gain)
