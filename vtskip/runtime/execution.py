"""The executor: runs one decoder layer on the rows its plan names. It never masks what it can leave out.

Three seams, from the cheapest to set up to the most general:

* *block*: one set of rows for everything: gather, the layer's own forward, scatter;
* *branch*: attention and FFN on different rows: the layer's own children, called one by one;
* *query*: attention taken apart, too: queries of some rows, K and V of others. It alone can run rows *packed*, behind one
  another without padding between the samples, and does where samples have different numbers of rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from vtskip.errors import ModelError
from vtskip.models.sharding import partitioned
from vtskip.plan import LayerPlan, RowMap, RowSet
from vtskip.rowset import on_device
from vtskip.runtime.attention import KV, project_kv, query_heads, rotate
from vtskip.runtime.cache import Sink, append, cache_layer, is_static, skip_layer
from vtskip.runtime.carried import Carried, quiet, rest_of, whole
from vtskip.runtime.checkpoints import checkpointed, checkpointing
from vtskip.runtime.keys import Keys
from vtskip.runtime.layout import Layout
from vtskip.runtime.masks import StepMask, backend, document_starts, packed, refuse_static_flex, window_of
from vtskip.runtime.native import LayerRuntime, native, text_step
from vtskip.runtime.packed import in_order, moves_fused, packed_attention, runs_packed
from vtskip.runtime.slots import RowSlots
from vtskip.runtime.text_runs import attended_by_runs
from vtskip.runtime.unread import WholeLayer
from vtskip.runtime.weighted import by_weighted_keys


class Execution:
    """One plan on one layer call.

    ``attend``, ``expose``: the plan's rows, without the samples that have none where nothing stands against it.
    ``packs``: whether the rows run behind one another. What a layer then leaves on padding is what came in: nothing reads it.
    ``ordered``: whether attention does, too, without a mask.
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
        self.expose = self.attend if plan.expose is plan.attend else plan.expose
        self.packs = self.ordered = False
        self.fused = moves_fused(x)
        self._layouts: dict[int, Layout] = {}
        # Not by its name: ZeRO-3 takes that for a use, and has this layer gather it in backward in this process alone.
        attn, weight = layer.self_attn, next(layer.input_layernorm.parameters())
        self.partitioned = partitioned(weight)
        self.kind = backend(attn)
        if is_static(stored):
            refuse_static_flex(self.kind)
        self.starts = self.documents() if self.kind == "flash" else None
        received = kwargs.get("attention_mask")
        self.step = StepMask(received, self.kind, window_of(attn), self.past, self.length, self.starts, weight.dtype)
        self.packs = runs_packed(self)
        self.ordered = self.packs and in_order(self, self.expose is self.attend)

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
        """``[B, S, hidden]`` after the layer; :class:`Carried` where the next layer may want the rows as they lie here."""
        out = self.seam(x)
        return out if self.layer.vtskip.runtime.hands_on else whole(out)

    def seam(self, x: Tensor) -> Tensor:
        plan, free = self.plan, not (self.packs or self.alike)
        gains = plan.gain_attn, plan.gain_ffn, plan.gain_row
        if plan.gain_key is not None:
            return checkpointed(self.layer, self.query, x, *gains, plan.gain_key)
        if free and plan.one_set:
            if self.rows.is_all(plan.attend) and plan.cache is plan.attend and not self.compact:
                return self.weigh(x, text_step(self.layer, x, self.kwargs), plan.gain_row)
            return self.block(x)
        if free and plan.attend is plan.expose:
            return checkpointed(self.layer, self.branch, x, *gains)
        return checkpointed(self.layer, self.query, x, *gains)

    # ---------------------------------------------------------------- the seams

    def block(self, x: Tensor) -> Tensor:
        plan, rows = self.plan, self.layout(self.attend)
        if rows.empty:
            self.write_nothing(x)
            return scaled(x, plan.gain_row) if plan.gain_skipped else x
        xs = rows.take(x)
        return self.put(x, xs, native(self.layer, xs, self.gathered_kwargs(self.attend)), rows, plan.gain_row)

    def branch(
        self, x: Tensor, gain_attn: Tensor | None = None, gain_ffn: Tensor | None = None, gain_row: Tensor | None = None
    ) -> Tensor:
        layer, rows = self.layer, self.attend
        if rows.width == 0:
            self.write_nothing(x)
            return self.weigh(x, self.ffn(x, gain_ffn), gain_row)
        untouched = self.is_all(rows) and not self.ragged and self.plan.cache is self.plan.attend and not self.compact
        if untouched:
            delta, _ = layer.self_attn(hidden_states=self.norm("attn_in", x), **self.kwargs)
            middle = (x + scaled(self.norm("attn_out", delta), gain_attn)).contiguous()
            return self.weigh(x, self.ffn(middle, gain_ffn, fresh=True), gain_row)
        layout = self.layout(rows)
        xs = layout.take(x)
        delta, _ = layer.self_attn(hidden_states=self.norm("attn_in", xs), **self.gathered_kwargs(rows))
        return self.finish(x, xs, delta, layout, gain_attn, gain_ffn, gain_row)

    def query(
        self,
        x: Tensor,
        gain_attn: Tensor | None = None,
        gain_ffn: Tensor | None = None,
        gain_row: Tensor | None = None,
        gain_key: Tensor | None = None,
    ) -> Tensor:
        if self.kwargs.get("is_causal") is False and self.step.received is None:
            raise ModelError(
                "is_causal=False was given to a layer whose queries and keys are different rows, which vtskip orders by "
                "position; give a 4-D attention_mask instead"
            )
        layer, queries, keys = self.layer, self.layout(self.attend), Keys(self, self.layout(self.expose))
        if queries.empty and keys.layout.empty:
            self.write_nothing(x)
            return self.weigh(x, self.ffn(x, gain_ffn), gain_row)
        if queries is keys.layout and not (keys.whole and queries.ok is not None):
            xs, normed = queries.take_normed(x, getattr(layer, self.parts.attn_in))
        else:
            xs, normed = queries.take(x), None
        delta = self.attention(x, xs, normed, queries, keys, gain_key)
        if delta is None:
            return self.weigh(x, self.ffn(x, gain_ffn), gain_row)
        return self.finish(x, xs, delta, queries, gain_attn, gain_ffn, gain_row)

    def attention(
        self,
        x: Tensor,
        xs: Tensor,
        normed: Tensor | None,
        queries: Layout,
        keys: Keys,
        gain_key: Tensor | None = None,
    ) -> Tensor | None:
        """Attention update of the queries' rows; None where there is none, and K and V are written alone.

        Projected in the order of the stock attention: sharded parameters are gathered in call order on every rank.
        """
        attn, embeddings = self.layer.self_attn, self.kwargs["position_embeddings"]
        asking, shown, joined = self.projected(x, xs, queries, keys) if normed is None else (normed, normed, None)
        turned = queries.take_all(*embeddings)
        if normed is not None:
            embeddings = turned
        elif not keys.whole:
            embeddings = keys.layout.take_all(*embeddings)
        if queries.empty:
            keys.update(*project_kv(attn, shown, embeddings, joined))
            return None
        q = query_heads(attn, asking)
        k, v = project_kv(attn, shown, embeddings, joined)
        q = rotate(attn, q, turned)
        if self.ordered:
            out = packed_attention(self, q, k, v, queries, keys)
        else:
            k, v = keys.update(k, v)
            if gain_key is not None:
                out = queries.unpadded(by_weighted_keys(self, queries.padded(q), k, v, keys, gain_key))
                return attn.o_proj(out.reshape(*queries.lead, -1).contiguous())
            out = queries.unpadded(attended_by_runs(self, queries.padded(q), k, v, keys))
        return attn.o_proj(out.reshape(*queries.lead, -1).contiguous())

    def projected(self, x: Tensor, xs: Tensor, queries: Layout, keys: Keys) -> tuple[Tensor, Tensor, KV | None]:
        """The normed rows that queries and other keys are made of; and K and V of the latter, if they are there already."""
        frozen = self.layer.vtskip.runtime.frozen
        joined = None if frozen is None else frozen.kv(self.index, self.rows, x)
        if joined is not None:
            return self.norm("attn_in", xs), xs, joined if keys.whole else tuple(keys.layout.take(t) for t in joined)
        normed = self.norm("attn_in", x)
        return queries.take(normed), normed if keys.whole else keys.layout.take(normed), None

    # ---------------------------------------------------------------- parts

    def norm(self, place: str, x: Tensor) -> Tensor:
        """One of the layer's norms by its place in :class:`LayerParts`; nothing where the layer has none."""
        name = getattr(self.parts, place)
        return x if name is None else getattr(self.layer, name)(x)

    def layout(self, rows: RowSet) -> Layout:
        if id(rows) not in self._layouts:
            self._layouts[id(rows)] = Layout(rows, self.packs, self.fused)
        return self._layouts[id(rows)]

    def finish(
        self,
        x: Tensor,
        xs: Tensor,
        delta: Tensor,
        rows: Layout,
        gain_attn: Tensor | None,
        gain_ffn: Tensor | None,
        gain_row: Tensor | None,
    ) -> Tensor:
        """Add the attention update of the gathered ``rows``, then the FFN: on the same rows without scattering between."""
        ys = xs + scaled(self.norm("attn_out", delta), None if gain_attn is None else rows.take(gain_attn))
        if self.plan.ffn is self.plan.attend:
            ys = ys + self.ffn_delta(ys, None if gain_ffn is None else rows.take(gain_ffn))
            return self.put(x, xs, ys, rows, gain_row)
        middle = rows.write(x, ys, xs)
        return self.weigh(x, self.ffn(middle, gain_ffn, fresh=True), gain_row)

    def put(self, x: Tensor, xs: Tensor, ys: Tensor, rows: Layout, gain: Tensor | None) -> Tensor:
        """``x`` with ``ys`` where ``xs`` came from, weighed by the row gain: there alone, or on the others as well."""
        plan = self.plan
        if gain is None:
            return Carried(rows, ys, rest_of(x, rows)) if self.carries(rows) else rows.write(x, ys, xs)
        everywhere = plan.gain_on == "output" and (plan.gain_skipped or not plan.one_set)
        if self.fused and not everywhere:
            return rows.update(x, ys, rows.take(gain), "write" if plan.gain_on == "output" else "blend")
        ys = weigh(xs, ys, rows.take(gain), plan.gain_on)
        if everywhere:
            base = scaled(x, gain).contiguous()
            return rows.put_(base, ys if rows.ok is None else rows.kept(ys, rows.take(base)))
        return rows.write(x, ys, xs)

    def carries(self, rows: Layout) -> bool:
        """Whether ``rows`` may travel to the next layer as they lie here. Compiled graphs keep tensors of one kind, and a
        checkpoint's borders the whole stream. Hooks are looked at late: transformers adds some while a model runs."""
        if not self.layer.vtskip.runtime.hands_on or rows.ok is not None or rows.all or torch.compiler.is_compiling():
            return False
        return not checkpointing(self.layer) and quiet(self.layer)

    def ffn_delta(self, x: Tensor, gain: Tensor | None) -> Tensor:
        return scaled(self.norm("ffn_out", self.layer.mlp(self.norm("ffn_in", x))), gain)

    def ffn(self, x: Tensor, gain: Tensor | None, fresh: bool = False) -> Tensor:
        """``x`` with the FFN's update of the plan's rows, written into ``x`` itself where that is ``fresh`` (nobody else's)."""
        if self.is_all(self.plan.ffn) and not self.packs:
            return x + self.ffn_delta(x, gain)
        rows = self.layout(self.plan.ffn)
        if rows.empty:
            return x
        weight = None if gain is None else rows.take(gain)
        if self.fused:
            _, normed = rows.take_normed(x, getattr(self.layer, self.parts.ffn_in))
            return rows.update(x, self.norm("ffn_out", self.layer.mlp(normed)), weight, "add", fresh)
        delta = self.ffn_delta(rows.take(x), weight)
        delta = delta if rows.ok is None else delta.masked_fill(~rows.ok[..., None], 0)
        return rows.add(x, delta, fresh)

    def weigh(self, x: Tensor, y: Tensor, gain: Tensor | None) -> Tensor:
        return y if gain is None else weigh(x, y, gain, self.plan.gain_on)

    @property
    def alike(self) -> bool:
        """Whether a routed layer has to take one seam whatever its plan: with checkpointing under ZeRO-3. Recomputation ends
        with the last tensor that was saved; where one seam saves one behind the last product and another does not, weights
        would be released in one process and not in the other, and gathered by one alone.
        """
        routed = not (self.compact or isinstance(self.layer.vtskip, WholeLayer))
        return routed and self.partitioned and checkpointing(self.layer)

    def is_all(self, rows: RowSet) -> bool:
        """Whether ``rows`` run ungathered. Never with checkpointing under ZeRO-3: torch recomputes a body, and weights are
        gathered for it, when its first saved tensor is asked for; that has to be the same one in every process.
        """
        return self.rows.is_all(rows) and not (checkpointing(self.layer) and self.partitioned)

    def gathered_kwargs(self, rows: RowSet) -> dict[str, Any]:
        """The layer's keyword arguments for the gathered rows: every per-row tensor gathered, cache and mask exchanged."""

        def gather(t: Any) -> Any:
            if isinstance(t, tuple):
                return tuple(gather(e) for e in t)
            per_row = torch.is_tensor(t) and t.dim() > 1 and t.shape[1] == self.length and t.shape[0] in (1, self.batch)
            return self.layout(rows).take(t) if per_row else t

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
        kept, samples = self.plan.cache, rows.samples
        mask = kept.mask if samples is None else kept.mask.index_select(0, on_device(samples, kept.mask.device))
        among = RowSet(mask.gather(1, rows.index), [kept.counts[b] for b in samples or range(self.batch)])
        among.bounds = kept.bounds
        return among.index, among.ok

    def write_nothing(self, x: Tensor) -> None:
        """No row runs in this layer: its cache only learns that rows passed by."""
        if self.cache is not None:
            attn = self.layer.self_attn
            empty = x.new_empty(self.batch, attn.config.num_key_value_heads, 0, attn.head_dim)
            pos = torch.empty(self.batch, 0, dtype=torch.long, device=x.device)
            append(self.cache, self.index, empty, empty, (pos, None, self.length, None))


def scaled(delta: Tensor, gain: Tensor | None) -> Tensor:
    return delta if gain is None else delta * gain[..., None].to(delta.dtype)


def weigh(x: Tensor, y: Tensor, gain: Tensor, on: str) -> Tensor:
    """``gain`` ``[B, m]`` on the output ``y``, or on what the layer added to ``x``."""
    weight = gain[..., None].to(y.dtype)
    return weight * y if on == "output" else x + weight * (y - x)
