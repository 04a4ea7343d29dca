"""The executor: runs one decoder layer on the rows its plan names. It never masks what it can leave out.

Three seams, from the cheapest to set up to the most general:

* *block*: one set of rows for everything: gather, the layer's own forward, scatter;
* *branch*: attention and FFN on different rows: the layer's own children, called one by one;
* *query*: fewer queries than keys: K and V of all rows, everything else of the few.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from vtskip.kernels.rows import gather_rows, scatter_rows
from vtskip.models.sharding import partitioned
from vtskip.plan import LayerPlan, RowMap, RowSet
from vtskip.runtime.attention import query_attention
from vtskip.runtime.cache import Sink, append, cache_layer, is_static, skip_layer
from vtskip.runtime.checkpoints import checkpointed, checkpointing
from vtskip.runtime.masks import StepMask, backend, document_starts, packed, refuse_static_flex, window_of
from vtskip.runtime.native import LayerRuntime, native, text_step
from vtskip.runtime.slots import RowSlots


class Execution:
    """One plan on one layer call.

    ``attend``: the plan's attending rows, without the samples that have none where nothing stands against it.
    ``slots``: rows already in this layer's cache, for the cost model.
    """

    def __init__(self, layer: nn.Module, rows: RowMap, plan: LayerPlan, x: Tensor, kwargs: dict[str, Any]):
        self.layer, self.rows, self.plan, self.kwargs = layer, rows, plan, kwargs
        self.batch, self.length = x.shape[:2]
        self.cache: Cache | None = None if checkpointing(layer) else kwargs.get("past_key_values")
        run: LayerRuntime = layer.vtskip.runtime
        self.index, self.parts = run.index, run.parts
        self.compact: bool = layer.vtskip.compact
        self.stored = stored = cache_layer(self.cache, self.index)
        self.past = 0 if stored is None else int(stored.get_seq_length())
        self.ragged = isinstance(stored, RowSlots) and stored.ragged
        self.slots = stored.slots if isinstance(stored, RowSlots) else self.past
        self.attend = self.pack()
        attn, weight = layer.self_attn, layer.input_layernorm.weight
        self.partitioned = partitioned(weight)
        self.kind = backend(attn)
        if is_static(stored):
            refuse_static_flex(self.kind)
        self.starts = self.documents() if self.kind == "flash" else None
        received = kwargs.get("attention_mask")
        self.step = StepMask(received, self.kind, window_of(attn), self.past, self.length, self.starts, weight.dtype)

    def documents(self) -> Tensor | None:
        """Borders of packed documents, found once per forward."""
        memo = self.rows.memo
        if "documents" not in memo:
            memo["documents"] = document_starts(self.kwargs, self.batch, self.length, self.past)
        return memo["documents"]

    def pack(self) -> RowSet:
        rows = self.plan.attend
        packed = rows.packed if rows is self.plan.expose else rows
        if isinstance(self.stored, RowSlots):
            return packed if self.stored.hold(packed.samples, self.batch) else rows
        return rows if self.past or is_static(self.stored) else packed

    def run(self, x: Tensor) -> Tensor:
        plan = self.plan
        if plan.one_set:
            if self.rows.is_all(plan.attend) and plan.cache is plan.attend and not self.compact:
                return self.weigh(x, text_step(self.layer, x, self.kwargs))
            return self.block(x)
        body = self.branch if plan.attend is plan.expose else self.query
        return self.weigh(x, checkpointed(self.layer, body, x, plan.gain_attn, plan.gain_ffn))

    # ---------------------------------------------------------------- the seams

    def block(self, x: Tensor) -> Tensor:
        plan, rows = self.plan, self.attend
        base = scaled(x, plan.gain_row) if plan.gain_skipped else x
        if rows.width == 0:
            self.write_nothing(x)
            return base
        xs = self.take(x, rows)
        ys = native(self.layer, xs, self.gathered_kwargs(rows))
        if plan.gain_row is not None:
            ys = weigh(xs, ys, self.take(plan.gain_row, rows), plan.gain_on)
        return scatter_rows(base, rows.flat_index, keep_fillers(rows, ys, self.take(base, rows)))

    def branch(self, x: Tensor, gain_attn: Tensor | None, gain_ffn: Tensor | None) -> Tensor:
        layer, rows = self.layer, self.attend
        if rows.width == 0:
            self.write_nothing(x)
            return self.ffn(x, gain_ffn)
        untouched = self.is_all(rows) and not self.ragged and self.plan.cache is rows and not self.compact
        if untouched:
            delta, _ = layer.self_attn(hidden_states=self.norm("attn_in", x), **self.kwargs)
            return self.ffn(x + scaled(self.norm("attn_out", delta), gain_attn), gain_ffn)
        xs = self.take(x, rows)
        delta, _ = layer.self_attn(hidden_states=self.norm("attn_in", xs), **self.gathered_kwargs(rows))
        return self.finish(x, xs, delta, rows, gain_attn, gain_ffn)

    def query(self, x: Tensor, gain_attn: Tensor | None, gain_ffn: Tensor | None) -> Tensor:
        layer, queries, embeddings = self.layer, self.plan.attend, self.kwargs["position_embeddings"]
        keys = _Keys(self)
        normed = self.norm("attn_in", x)
        delta = query_attention(
            layer.self_attn,
            normed,
            None if keys.all else self.take(normed, self.plan.expose),
            queries,
            embeddings if keys.all else tuple(self.take(t, self.plan.expose) for t in embeddings),
            tuple(self.take(t, queries) for t in embeddings),
            keys.update,
            keys.mask,
        )
        if queries.width == 0:
            return x if self.plan.ffn.width == 0 else self.ffn(x, gain_ffn)
        return self.finish(x, self.take(x, queries), delta, queries, gain_attn, gain_ffn)

    # ---------------------------------------------------------------- parts

    def norm(self, place: str, x: Tensor) -> Tensor:
        """One of the layer's norms by its place in :class:`LayerParts`; nothing where the layer has none."""
        name = getattr(self.parts, place)
        return x if name is None else getattr(self.layer, name)(x)

    def finish(
        self, x: Tensor, xs: Tensor, delta: Tensor, rows: RowSet, gain_attn: Tensor | None, gain_ffn: Tensor | None
    ) -> Tensor:
        """Add the attention update of the gathered ``rows``, then the FFN: on the same rows without scattering between."""
        ys = xs + scaled(self.norm("attn_out", delta), None if gain_attn is None else self.take(gain_attn, rows))
        if self.plan.ffn is self.plan.attend:
            ys = ys + self.ffn_delta(ys, None if gain_ffn is None else self.take(gain_ffn, rows))
            return scatter_rows(x, rows.flat_index, keep_fillers(rows, ys, xs))
        return self.ffn(scatter_rows(x, rows.flat_index, keep_fillers(rows, ys, xs)), gain_ffn)

    def ffn_delta(self, x: Tensor, gain: Tensor | None) -> Tensor:
        return scaled(self.norm("ffn_out", self.layer.mlp(self.norm("ffn_in", x))), gain)

    def ffn(self, x: Tensor, gain: Tensor | None) -> Tensor:
        rows = self.plan.ffn
        if self.is_all(rows):
            return x + self.ffn_delta(x, gain)
        if rows.width == 0:
            return x
        xs = self.take(x, rows)
        ys = xs + self.ffn_delta(xs, None if gain is None else self.take(gain, rows))
        return scatter_rows(x, rows.flat_index, keep_fillers(rows, ys, xs))

    def weigh(self, x: Tensor, y: Tensor) -> Tensor:
        return y if self.plan.gain_row is None else weigh(x, y, self.plan.gain_row, self.plan.gain_on)

    def is_all(self, rows: RowSet) -> bool:
        """Whether ``rows`` run ungathered. Never with checkpointing under ZeRO-3: torch recomputes a body, and weights are
        gathered for it, when its first saved tensor is asked for; that has to be the same one in every process.
        """
        return self.rows.is_all(rows) and not (checkpointing(self.layer) and self.partitioned)

    def take(self, t: Tensor, rows: RowSet) -> Tensor:
        """Rows of ``[B, S, ...]`` or of a shared ``[1, S, ...]``."""
        if t.shape[0] == 1:
            return t[0].index_select(0, rows.index.reshape(-1)).view(len(rows.index), rows.width, *t.shape[2:])
        return gather_rows(t, rows.flat_index, len(rows.index))

    def gathered_kwargs(self, rows: RowSet) -> dict[str, Any]:
        """The layer's keyword arguments for the gathered rows: every per-row tensor gathered, cache and mask exchanged."""

        def gather(t: Any) -> Any:
            if isinstance(t, tuple):
                return tuple(gather(e) for e in t)
            per_row = torch.is_tensor(t) and t.dim() > 1 and t.shape[1] == self.length and t.shape[0] in (1, self.batch)
            return self.take(t, rows) if per_row else t

        special = ("attention_mask", "past_key_values", "position_ids")
        kwargs = {name: gather(value) for name, value in self.kwargs.items() if name not in special}
        if self.compact:
            kwargs["position_embeddings"] = self.compact_embeddings(rows, kwargs["position_embeddings"][0])
        pos, ok, sink = self.past + rows.index, rows.ok, None
        all_pos, all_ok = pos, ok
        if self.cache is not None:
            layer, stored, steps = skip_layer(self.cache, self.index), self.stored_index(rows), self.length
            layer.hold(rows.samples, self.batch)
            all_pos, all_ok = layer.visible(pos, ok)
            sink = Sink(lambda k, v: append(self.cache, self.index, k, v, (pos, ok, steps, stored)))
        # position_ids=None: flash would read the gaps between gathered positions as document boundaries.
        return {
            **kwargs,
            **({} if self.starts is None else packed(self.starts, rows)),
            "attention_mask": self.mask(rows, all_pos, all_ok),
            "past_key_values": sink,
            "position_ids": None,
        }

    def compact_embeddings(self, rows: RowSet, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of the gathered rows when the layer counts only the rows it runs, in all steps."""
        ran = self.stored.run() if isinstance(self.stored, RowSlots) else self.past
        first = torch.as_tensor(ran, device=like.device).reshape(-1, 1)
        place = torch.arange(rows.width, device=like.device).expand(len(rows.index), -1)
        if rows.ok is not None:
            place = (rows.ok.long().cumsum(1) - 1).clamp(min=0)
        cos, sin = self.layer.vtskip.runtime.rotary(like, first + place)
        return cos.to(like.device), sin.to(like.device)

    def mask(self, rows: RowSet, key_pos: Tensor, key_ok: Tensor | None) -> Tensor | None:
        """None where causal-by-order is right: the same rows as queries and keys, or a single query that sees all."""
        plain = self.kind != "flash" and self.step.received is None and key_ok is None
        if plain and (rows.width == 1 or key_pos.shape[1] == rows.width):
            return None
        return self.build_mask(rows, key_pos, key_ok, self.kind)

    def build_mask(self, rows: RowSet, key_pos: Tensor, key_ok: Tensor | None, kind: str) -> Any:
        return self.step.subset(rows.index, rows.ok, key_pos, key_ok, kind, rows.samples)

    def stored_index(self, rows: RowSet) -> tuple[Tensor, Tensor | None] | None:
        """Where among the gathered ``rows`` those lie that the plan leaves in the cache; None for all of them."""
        if self.plan.cache is self.plan.expose:
            return None
        samples = list(rows.samples or range(self.batch))
        kept = self.plan.cache
        among = RowSet(kept.mask[samples].gather(1, rows.index), [kept.counts[b] for b in samples])
        among.bounds = kept.bounds
        return among.index, among.ok

    def write_nothing(self, x: Tensor) -> None:
        """No row runs in this layer: its cache only learns that rows passed by."""
        if self.cache is not None:
            attn = self.layer.self_attn
            empty = x.new_empty(self.batch, attn.config.num_key_value_heads, 0, attn.head_dim)
            pos = torch.empty(self.batch, 0, dtype=torch.long, device=x.device)
            append(self.cache, self.index, empty, empty, (pos, None, self.length, None))


class _Keys:
    """The key side of the query seam: which rows give K and V, how they enter the cache, and the mask over all of them."""

    def __init__(self, execution: Execution):
        self.of = execution
        plan = execution.plan
        self.all = execution.is_all(plan.expose) and plan.cache is plan.expose
        self.pos: Tensor | None = None
        self.ok: Tensor | None = None

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        ex = self.of
        if self.all and not isinstance(ex.stored, RowSlots):  # as the dense layer would store it, padding included
            offset, total = 0, ex.past + ex.length
            if ex.cache is not None:
                offset = ex.cache.get_mask_sizes(ex.length, ex.index)[1]
                k, v = (t[:, :, : total - offset] for t in ex.cache.update(k, v, ex.index))  # without free static slots
            self.pos = torch.arange(offset, total, device=k.device).expand(ex.batch, -1)
            return k, v
        rows = ex.plan.expose
        if self.all:
            index, ok = torch.arange(ex.length, device=k.device).expand(ex.batch, -1), None
        else:
            index, ok = rows.index, rows.ok
        if ex.cache is None:
            self.pos, self.ok = index, ok
            return k, v
        layer = skip_layer(ex.cache, ex.index)
        stored = None if self.all else ex.stored_index(rows)
        self.pos, self.ok = layer.visible(ex.past + index, ok)
        return append(ex.cache, ex.index, k, v, (ex.past + index, ok, ex.length, stored))

    def mask(self, kind: str) -> Any:
        assert self.pos is not None
        return self.of.build_mask(self.of.plan.attend, self.pos, self.ok, kind)


def scaled(delta: Tensor, gain: Tensor | None) -> Tensor:
    return delta if gain is None else delta * gain[..., None].to(delta.dtype)


def weigh(x: Tensor, y: Tensor, gain: Tensor, on: str) -> Tensor:
    """``gain`` ``[B, m]`` on the output ``y``, or on what the layer added to ``x``."""
    weight = gain[..., None].to(y.dtype)
    return weight * y if on == "output" else x + weight * (y - x)


def keep_fillers(rows: RowSet, new: Tensor, old: Tensor) -> Tensor:
    """``new``, but ``old`` on filler rows, which belong to no set."""
    return new if rows.ok is None else torch.where(rows.ok[..., None], new, old)
