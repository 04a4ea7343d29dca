"""What ran: rows per layer and forward, counted on the host as the executor goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vtskip.plan import LayerPlan, RowMap
from vtskip.runtime.cache import kv_bytes, stored_slots


@dataclass
class LayerCount:
    """Sums over samples and forwards: rows that came by, and rows (fillers included) that each part computed.

    ``pairs`` are query-key products, ``rows * (cached + exposed)``; ``vision``/``kept`` count vision rows seen and
    attended; ``cache`` rows that were written for later forwards.
    """

    rows: int = 0
    attend: int = 0
    expose: int = 0
    ffn: int = 0
    cache: int = 0
    pairs: int = 0
    vision: int = 0
    kept: int = 0
    kept_ffn: int = 0

    def add_dense(self, batch: int, length: int, past: int, vision: int) -> None:
        n = batch * length
        for name in ("rows", "attend", "expose", "ffn", "cache"):
            setattr(self, name, getattr(self, name) + n)
        self.pairs += n * (past + length)
        self.vision += vision
        self.kept += vision
        self.kept_ffn += vision


@dataclass
class StepState:
    """State of the current forward and the sums since the last reset; one object shared by all layers of a model.

    Attributes:
        rows: the RowMap of the running forward, None on steps without vision rows.
        override: a layout given by the caller instead of being read from the inputs.
        plans: the last forward with vision rows, layer -> (its plan, rows already cached), for reports and pictures.
    """

    rows: RowMap | None = None
    override: Any = None
    layers: list[LayerCount] = field(default_factory=list)
    dense: LayerCount = field(default_factory=LayerCount)
    logit_rows: int = 0
    forwards: int = 0
    kv_bytes: int = 0
    kv_bytes_dense: int = 0
    running: dict[int, tuple[LayerPlan, int]] = field(default_factory=dict)
    last_rows: RowMap | None = None
    plans: dict[int, LayerPlan] = field(default_factory=dict)

    def reset(self, layers: int) -> None:
        self.layers = [LayerCount() for _ in range(layers)]
        self.dense = LayerCount()
        self.logit_rows = self.forwards = self.kv_bytes = self.kv_bytes_dense = 0
        self.last_rows, self.plans = None, {}

    def begin(self, rows: RowMap | None) -> None:
        self.rows = rows
        self.running = {}

    def record(self, layer: int, plan: LayerPlan, slots: int) -> None:
        self.running[layer] = (plan, slots)

    def finish(self, batch: int, length: int, cache: Any) -> None:
        """Close a forward of ``[batch, length]`` rows: layers that recorded nothing ran every row."""
        vision = 0 if self.rows is None else sum(map(sum, self.rows.sizes))
        past = 0 if cache is None else max(cache.get_seq_length() - length, 0)
        self.dense.add_dense(batch, length, past, vision)
        self.forwards += 1
        for i, count in enumerate(self.layers):
            if i in self.running:
                self._add(count, batch, length, vision, *self.running[i])
            else:
                layer = cache.layers[i] if cache is not None and len(cache.layers) > i else None
                count.add_dense(batch, length, max(stored_slots(layer) - length, 0), vision)
        if self.rows is not None:
            self.last_rows, self.plans = self.rows, {i: _detached(plan) for i, (plan, _) in self.running.items()}
        if cache is not None:
            self.kv_bytes = kv_bytes(cache)
            self.kv_bytes_dense = _dense_bytes(cache)
        self.rows = None
        self.running = {}

    def _add(self, count: LayerCount, batch: int, length: int, vision: int, plan: LayerPlan, slots: int) -> None:
        assert self.rows is not None
        everything = self.rows.everything.counts

        def ran(rows: Any) -> int:  # a set of all rows runs ungathered, padding included
            return batch * (length if rows.counts == everything else rows.width)

        def seen(rows: Any) -> int:
            return sum(rows.counts) - sum(self.rows.text_counts)  # type: ignore[union-attr]

        attend, expose = ran(plan.attend), ran(plan.expose)
        count.rows += batch * length
        count.attend += attend
        count.expose += expose
        count.ffn += ran(plan.ffn)
        count.cache += ran(plan.cache)
        count.pairs += attend * (slots + expose // batch)
        count.vision += vision
        count.kept += seen(plan.attend)
        count.kept_ffn += seen(plan.ffn)


def count_logit_rows(state: StepState, module: Any, args: tuple[Tensor, ...]) -> None:
    """Forward pre-hook of the LM head."""
    if args:
        state.logit_rows += args[0].shape[:-1].numel()


def _detached(plan: LayerPlan) -> LayerPlan:
    """The plan's rows without the gains, whose graph must not outlive the step."""
    return LayerPlan(plan.attend, plan.expose, plan.ffn, plan.cache)


def _dense_bytes(cache: Any) -> int:
    """Bytes the same cache would hold had every layer stored every row."""
    total = 0
    for layer in cache.layers:
        keys = getattr(layer, "keys", None)
        if stored_slots(layer):
            per_row = 2 * keys.shape[0] * keys.shape[1] * keys.shape[3] * keys.element_size()
            window = getattr(layer, "window", None) or getattr(layer, "sliding_window", None)
            seen = int(layer.get_seq_length())
            total += per_row * (min(seen, window - 1) if window else seen)
    return total
