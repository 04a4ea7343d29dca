"""What a forward of the whole model is asked for: logits of all rows, of the last ones, or a loss alone."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vtskip.models.labelled import IGNORED, rows_of
from vtskip.models.sharding import partitioned
from vtskip.runtime.stats import StepState
from vtskip.runtime.unread import Asked

COLUMNS, LABELS = "logits_to_keep", "labels"
READERS = ("output_hidden_states", "output_attentions", "output_router_logits")  # show what layers make of every row
Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass
class AskedRows:
    """Pre-hook and hook of a causal model, and the hook of its decoder. They hold no reference to the model."""

    state: StepState
    arg_names: tuple[str, ...]

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        if torch.compiler.is_compiling():
            return None
        asked = self.state.asked[get_ident()] = Asked()
        inputs = {**dict(zip(self.arg_names, args)), **kwargs}
        asked.padding = labels_padding(inputs, getattr(type(module), "picks_labelled_rows", False))
        if not asked.padding and not rows_are_shown(module.config, inputs):
            columns, labels = inputs.get(COLUMNS), inputs.get(LABELS)
            if torch.is_tensor(labels) and (module.training or self.state.loss_only):
                return self.with_labels(asked, module, args, kwargs, inputs)
            if type(columns) is int and columns > 0 and not module.training:
                asked.columns = columns
        return None

    def with_labels(
        self, asked: Asked, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: dict[str, Any]
    ) -> Call | None:
        """The labels of the labelled rows alone, as the loss of a causal model shifts them: ``[1, n + 1]``, the first one
        ignored; the decoder then returns these ``n`` rows and, for the last label that has no target, one of them again.

        None where something stands against it. Reads the labels from the device once, before any layer runs.
        """
        labels: Tensor = inputs[LABELS]
        source = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs.get("inputs_embeds")
        if source is None or labels.dim() != 2 or labels.shape != source.shape[:2] or is_compiled(module):
            return None
        own = getattr(type(module), "picks_labelled_rows", False)  # and its labels are shifted already
        columns = inputs.get(COLUMNS)
        whole = columns is None or (type(columns) is int and columns == 0)
        if not own and not (whole and inputs.get("shift_labels") is None and stock_loss(module)):
            return None
        labelled = labels.ne(IGNORED).cpu().numpy()
        if not own:
            labelled = np.pad(labelled[:, 1:], ((0, 0), (0, 1)))
        asked.labelled, asked.layers = labelled, not partitioned(next(module.parameters()))
        if own:
            return None
        flat = np.flatnonzero(labelled)
        asked.flat = torch.from_numpy(np.append(flat, flat[-1:] if len(flat) else 0)).to(labels.device)
        targets = labels.reshape(-1)[asked.flat[:-1] + 1]
        packed = torch.cat([labels.new_full((1,), IGNORED), targets])[None]
        if LABELS in kwargs:
            return args, {**kwargs, LABELS: packed}
        place = self.arg_names.index(LABELS)
        return (*args[:place], packed, *args[place + 1 :]), kwargs

    def pick(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Forward hook of the decoder."""
        asked = self.state.asked_here()
        if asked is None or asked.flat is None:
            return None
        self.state.logit_rows_saved += output.last_hidden_state.shape[:2].numel() - len(asked.flat)
        return rows_of(output, asked.flat)

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:
        asked = self.state.asked_here()
        self.state.asked.pop(get_ident(), None)
        if output is None or asked is None or asked.labelled is None:
            return None
        return type(output)(**{name: value for name, value in output.items() if name != "logits"})


def asked_hooks(model: nn.Module, decoder: nn.Module, state: StepState) -> list[Any]:
    """Hooks of a model with an LM head; none for others."""
    names = tuple(inspect.signature(type(model).forward).parameters)[1:]
    if COLUMNS not in names:
        return []
    asked = AskedRows(state, names)
    return [
        model.register_forward_pre_hook(asked.before, with_kwargs=True),
        model.register_forward_hook(asked.after, always_call=True),
        decoder.register_forward_hook(asked.pick),
    ]


def labels_padding(inputs: dict[str, Any], shifted: bool) -> bool:
    """Whether a label is predicted at a row of padding: of left-padded samples whose first row has one. Reads the device."""
    labels, mask = inputs.get(LABELS), inputs.get("attention_mask")
    if not (isinstance(labels, Tensor) and isinstance(mask, Tensor)) or labels.dim() != 2 or labels.shape != mask.shape:
        return False
    labels, mask = (labels, mask) if shifted else (labels[:, 1:], mask[:, :-1])
    return bool((labels.ne(IGNORED) & ~mask.bool()).any())


def rows_are_shown(config: Any, inputs: dict[str, Any]) -> bool:
    """Whether the caller gets to see hidden states, or anything else, of rows that have no label."""

    def option(name: str, default: bool) -> bool:
        given = inputs.get(name)
        return (
            given if given is not None else any(getattr(c, name, default) for c in (config, config.get_text_config()))
        )

    return any(option(name, False) for name in READERS) or not option("return_dict", True)


def stock_loss(model: Any) -> bool:
    """Whether the model's loss is the usual one; any other might not be a sum over labelled rows."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    return getattr(model, "loss_function", None) is ForCausalLMLoss


def is_compiled(model: Any) -> bool:
    """A compiled decoder would be compiled anew for each number of labels."""
    return any(getattr(m, "_compiled_call_impl", None) is not None for m in (model, model.get_decoder()))
