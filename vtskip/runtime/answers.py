"""Which rows of a forward are answers: those whose own token is a label."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad

from vtskip.models.labelled import IGNORED
from vtskip.runtime.stats import StepState


@dataclass
class AnswerHooks:
    """Pre-hook and hook of a model that takes labels."""

    state: StepState
    arg_names: tuple[str, ...]

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        labels: Any = {**dict(zip(self.arg_names, args)), **kwargs}.get("labels")
        self.state.answers = None
        if torch.is_tensor(labels) and labels.dim() == 2:
            answers = labels.ne(IGNORED)
            own = getattr(type(module), "picks_labelled_rows", False)  # its label at p is the token at p + 1
            self.state.answers = pad(answers[:, :-1], (1, 0)) if own else answers

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        self.state.answers = None


def answer_hooks(model: nn.Module, state: StepState) -> list[Any]:
    names = tuple(inspect.signature(type(model).forward).parameters)[1:]
    if "labels" not in names:
        return []
    hooks = AnswerHooks(state, names)
    return [
        model.register_forward_pre_hook(hooks.before, with_kwargs=True),
        model.register_forward_hook(hooks.after, always_call=True),
    ]
