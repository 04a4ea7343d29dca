"""K and V of frozen rows for a run of layers from one product over stacked weights.

Between consecutive layers in which only text rows run (ShortV), every other row enters each layer as it entered the first.
Its K (before the per-head norm and the rotation) and V in all of them are then one product: the RMS statistics of the row
are shared, and each layer's own norm gain is folded into its rows of the stacked weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtskip.models.norms import Rms, rms_of
from vtskip.models.sharding import elsewhere
from vtskip.plan import RowMap, RowSet
from vtskip.runtime.checkpoints import checkpointing

FROZEN = "frozen"  # with the run's first layer: key of RowMap.memo
Joined = tuple[Any, Tensor, Tensor | None]


@dataclass
class FrozenRun:
    """Consecutive layers of one device in which rows outside the text stay as they are. Lives on each layer's runtime.

    Attributes:
        first: index of the first layer. layers: of the decoder, in order.
        joined: stacked weights and biases with what they were made of, where no gradient flows into them.
    """

    first: int
    layers: list[nn.Module]
    joined: Joined | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "joined": None}

    def kv(self, index: int, rows: RowMap, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """K and V of all rows of ``x`` ``[B, S, hidden]`` as layer ``index`` projects them, ``[B, S, kv_heads * head_dim]``.

        None where the separate form has to run: projections that are not plain linear layers here (LoRA, quantised,
        sharded, offloaded, hooked), gradient checkpointing (what the first layer computes would outlive its checkpoint),
        ``torch.compile``, and row counts that are only bounds.
        """
        key = (FROZEN, self.first)
        if index == self.first and self.plain(x) and not rows.bounds:
            rows.memo[key] = self.start(rows, x)
        found = rows.memo.get(key)
        if found is None:
            return None
        layer, text = self.layers[index - self.first], rows.text
        normed = layer.input_layernorm(gather_rows(x, text.flat_index, len(x)))
        moved = torch.cat([layer.self_attn.k_proj(normed), layer.self_attn.v_proj(normed)], -1)
        k, v = gather_rows(torch.cat([found.pop(index), moved], 1), found["place"], len(x)).chunk(2, -1)
        if layer is self.layers[-1]:
            del rows.memo[key]  # the rows of the last forward stay
        return k, v

    def start(self, rows: RowMap, x: Tensor) -> dict[Any, Tensor]:
        """The frozen rows' part for every layer of the run, and where each row lies among frozen and text rows."""
        (batch, length), text = x.shape[:2], rows.text
        frozen = RowSet(~text.mask, [length - n for n in text.counts])
        frozen.run_at_least_one()  # every process of a sharded run then has gradients in the same order
        weight, bias = self.stacked()
        xs = unit(gather_rows(x, frozen.flat_index, batch), norm_of(self.layers[0]).eps)
        parts = F.linear(xs, weight, bias).chunk(len(self.layers), -1)
        place = torch.empty(batch, length, dtype=torch.long, device=x.device)
        start = 0
        for part in (frozen, text):  # fillers of the first are text rows, which the second writes anew
            places = torch.arange(start, start + part.width, device=x.device)
            place.scatter_(1, part.index, places.expand(batch, -1))
            start += part.width
        place += start * torch.arange(batch, device=x.device)[:, None]
        return {"place": place.reshape(-1), **{self.first + i: part for i, part in enumerate(parts)}}

    def stacked(self) -> tuple[Tensor, Tensor | None]:
        """Weights ``[layers * 2 * kv, hidden]`` and biases; made anew in each forward that trains one of them."""
        parameters = [p for layer in self.layers for p in sources(layer)]
        if torch.is_grad_enabled() and any(p.requires_grad for p in parameters):
            self.joined = None
            return self.join()
        made_of = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters]
        key = (torch.is_inference_mode_enabled(), made_of)
        if self.joined is None or self.joined[0] != key:
            with torch.no_grad():
                self.joined = (key, *self.join())
        return self.joined[1:]

    def join(self) -> tuple[Tensor, Tensor | None]:
        weights, biases = [], []
        for layer in self.layers:
            norm = norm_of(layer)
            gain = wide(norm.weight) + norm.offset
            for linear in projections(layer):
                weights.append((wide(linear.weight) * gain).to(linear.weight.dtype))
                biases.append(linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias)
        biased = any(layer.self_attn.k_proj.bias is not None for layer in self.layers)
        return torch.cat(weights), torch.cat(biases) if biased else None

    def plain(self, x: Tensor) -> bool:
        """Whether the layers' norms and projections are nothing but those, with whole weights of one shape beside ``x``."""
        norms = [rms_of(layer.input_layernorm, layer.self_attn.k_proj.weight.dtype) for layer in self.layers]
        linears = [linear for layer in self.layers for linear in projections(layer)]
        plain = (
            not (torch.compiler.is_compiling() or checkpointing(self.layers[0]))
            and len({None if norm is None else norm.eps for norm in norms}) == 1
            and None not in norms
            and all(is_plain(linear, x.device) for linear in linears)
            and len({(linear.weight.shape, linear.weight.dtype) for linear in linears}) == 1
        )
        if not plain:
            self.joined = None
        return plain


def join_runs(layers: Iterable[nn.Module], deepstack: int) -> None:
    """Find the runs among a decoder's ``layers`` whose planners want their frozen rows ``joined``, two layers or more.

    Features added to the vision rows after each of the first ``deepstack`` layers end a run.
    """
    run: list[Any] = []
    for i, layer in enumerate(layers):
        joined = getattr(getattr(layer, "vtskip", None), "joined", False)
        if not joined or i <= deepstack:
            run = []
        if joined:
            run.append(layer)
        if len(run) == 2:
            run[0].vtskip.runtime.frozen = FrozenRun(i - 1, run)
        if len(run) > 1:
            run[-1].vtskip.runtime.frozen = run[0].vtskip.runtime.frozen


def norm_of(layer: nn.Module) -> Rms:
    norm = rms_of(layer.input_layernorm, layer.input_layernorm.weight.dtype)
    assert norm is not None
    return norm


def gather_rows(x: Tensor, flat_index: Tensor, batch: int) -> Tensor:
    """Rows ``flat_index`` ``[batch * m]`` of ``x`` ``[batch, S, D]``, flattened over the batch -> ``[batch, m, D]``."""
    return x.reshape(-1, x.shape[-1]).index_select(0, flat_index).view(batch, -1, x.shape[-1])


def unit(x: Tensor, eps: float) -> Tensor:
    """``x`` over its root mean square, computed in fp32 as the stock norms do."""
    values = x.float()
    return (values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def wide(t: Tensor) -> Tensor:
    return t.to(torch.promote_types(t.dtype, torch.float32))


def projections(layer: Any) -> tuple[nn.Linear, nn.Linear]:
    return layer.self_attn.k_proj, layer.self_attn.v_proj


def sources(layer: Any) -> list[Tensor]:
    return [p for module in (layer.input_layernorm, *projections(layer)) for p in module.parameters()]


def is_plain(linear: nn.Module, device: torch.device) -> bool:
    """Whether calling ``linear`` is nothing but a product with whole weights that are on ``device``."""
    hooks = (linear._forward_hooks, linear._forward_pre_hooks, linear._backward_hooks, linear._backward_pre_hooks)
    if type(linear) is not nn.Linear or any(hooks) or "forward" in linear.__dict__:
        return False
    whole = [type(p) is nn.Parameter and p.device == device and not elsewhere(p) for p in linear.parameters()]
    return all(whole)
