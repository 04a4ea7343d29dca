"""What a prefill costs, from a method's own plans: nothing runs, and no weights are needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from threading import get_ident
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vtskip.cost import kv_row_bytes
from vtskip.errors import ModelError, one_line
from vtskip.models.families import decoder_of
from vtskip.models.sharding import elsewhere, partitioned
from vtskip.plan import SCORES, VIT_CLS, VIT_LOGITS, RowMap
from vtskip.runtime.attach import Handle
from vtskip.runtime.report import Report, make_report
from vtskip.runtime.stats import StepState
from vtskip.runtime.unread import Asked, WholeLayer, read_part


@dataclass(frozen=True)
class Prompt:
    """Vision rows in equal groups (images, frames) between two halves of text; by default LLaVA-1.5's image and a question."""

    text_rows: int = 64
    vision_rows: int = 576
    groups: int = 1

    @property
    def length(self) -> int:
        return self.text_rows + self.vision_rows

    @property
    def vision(self) -> np.ndarray:
        """``[1, length]`` bool."""
        mask = np.zeros((1, self.length), bool)
        mask[0, self.text_rows // 2 : self.text_rows // 2 + self.vision_rows] = True
        return mask

    def row_map(self, device: torch.device | str = "cpu") -> RowMap:
        ends = [i * self.vision_rows // self.groups for i in range(self.groups + 1)]
        return RowMap.build(self.vision, sizes=[np.diff(ends).tolist()], device=device)


@torch.no_grad()
def prefill_report(handle: Handle, prompt: Prompt = Prompt(), seed: int = 0) -> Report:
    """Counts of one prefill that is asked for its last row's logits, from the method's plans on random hidden states.

    Where the weights are elsewhere (meta device, sharded), plans are those of the method as it is before training.
    """
    layers = decoder_of(handle.model)[0].layers
    weight, here = next(layers[0].parameters()), [getattr(layer, "vtskip", None) for layer in layers]
    planners: list[Any] = here
    away = elsewhere(weight) or partitioned(
        weight
    )  # the latter gathers routers, in all processes, when they are called
    if away:
        fresh: Any = handle.method.planners(handle.shape)
        fresh = [None if new is None else new.train(layers.training) for new in fresh]
        planners = [WholeLayer() if new is None and old is not None else new for new, old in zip(fresh, here)]
    device = torch.device("cpu") if away else weight.device
    rows, state = prompt.row_map(device), StepState(every_step=handle.state.every_step)
    generator = torch.Generator().manual_seed(seed)

    def noise(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(device, torch.float32 if away else weight.dtype)

    hidden = noise(1, prompt.length, handle.shape.hidden)
    state.reset(handle.shape.layers)
    state.asked = {get_ident(): Asked(1)} if handle.lossless else {}
    state.begin(rows)
    # Attention that only a real forward has: numbers of rows do not depend on it.
    rows.memo |= {(SCORES, i): noise(1, prompt.length) for i in range(len(layers))}
    rows.memo |= {kind: noise(1, prompt.length) for kind in (VIT_CLS, VIT_LOGITS)}
    for i, (planner, old) in enumerate(zip(planners, here)):
        if planner is not None and old is not None:
            plan = part = planner(rows, hidden)
            if handle.lossless and (unread := old.runtime.unread) != "none":
                part = read_part(plan, rows, unread, planner.compact, state.every_step)
            state.record(i, plan, 0, ran=part)
    state.finish(1, prompt.length, None)
    state.logit_rows = 1
    row_bytes = kv_row_bytes(handle.shape, weight.element_size())
    state.kv_bytes = row_bytes * sum(count.cache for count in state.layers)
    state.kv_bytes_dense = row_bytes * prompt.length * handle.shape.layers
    return make_report(handle.method.name, handle.shape, state)


def weightless(source: str) -> nn.Module:
    """The stock model of a folder or Hub repository on the meta device; of its files only ``config.json`` is read.

    Raises ModelError where there is none, or where it names no model of transformers.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(source)
    except (OSError, ValueError, KeyError) as e:
        raise ModelError(f"{source}: no model's config.json can be read there ({one_line(e)})") from None
    name = next(iter(config.architectures or ()), None)
    cls: Any = getattr(transformers, str(name), None)
    if cls is None:
        raise ModelError(
            f"{Path(source) / 'config.json'}: architectures names {name!r}, which transformers does not have"
        )
    with torch.device("meta"):
        return cls(config).to(config.dtype or torch.bfloat16).eval()
