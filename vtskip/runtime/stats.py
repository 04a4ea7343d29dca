"""What ran: rows per layer and forward, counted on the host as the executor goes."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from vtskip.errors import ModelError
from vtskip.plan import LayerPlan, RowMap
from vtskip.runtime.cache import dense_length, is_static, kv_bytes, stored_slots
from vtskip.runtime.unread import Asked


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

    def add(self, rows: int, pairs: int, vision: int) -> None:
        """Rows that all ran through everything."""
        self.rows += rows
        self.attend += rows
        self.expose += rows
        self.ffn += rows
        self.cache += rows
        self.pairs += pairs
        self.vision += vision
        self.kept += vision
        self.kept_ffn += vision

    def with_text(self, rows: int) -> LayerCount:
        """These counts and those of ``rows`` rows of steps without vision (their pairs are counted already)."""
        total = replace(self)
        total.add(rows, 0, 0)
        return total


@dataclass
class StepState:
    """State of the current forward and the sums since the last reset; one object shared by all layers of a model.

    Attributes:
        rows: the RowMap of the running forward, None on steps without vision rows.
        override: a layout given by the caller instead of being read from the inputs.
        counts: sums per layer over steps with vision rows, and the pairs of all steps; ``text_rows`` are the rows of the
            steps without, which ran everywhere. late: layer and field -> what only a device knows of them; ``layers`` adds it.
        every_step: some layer wants a plan on steps without vision rows too; ``rows`` then holds text rows there.
        chooses: some layer chooses among the rows of an image or frame.
        bucket: round the numbers of rows that run up to multiples of this.
        asked: thread -> what the forward of the whole model that it runs is asked for.
        loss_only: a forward with labels outside training is asked for its loss alone, too.
        packs: rows may run packed, without the padding between samples; False with a bucket or without the lossless savings.
        plain: masks of the running forward say nothing but order and padding. attentions: its attention maps are asked for.
        padding_read: the loss of the running forward reads rows of padding.
        uniform: every process has to call the same modules in this forward, whatever its rows.
        aux: auxiliary losses of the running forward.
        vit_cls, vit_logits: ``[images, rows]`` attention of the vision tower's CLS token, of the images of the running
            forward (a tile counts as one); after the softmax, and before it.
        answers: ``[B, S]`` bool, rows of the running forward whose own token is a label; None where nobody asks, or without.
        running: layer -> (its plan, rows already cached, the samples that attend or None for all, the part of the plan that
            ran, whether packed, and whether attention was) of the current forward; ``plans`` of the last one with vision rows.
        owner: the thread whose forward is running, if one is.
    """

    rows: RowMap | None = None
    override: Any = None
    every_step: bool = False
    chooses: bool = False
    packs: bool = False
    plain: bool = False
    attentions: bool = False
    padding_read: bool = False
    uniform: bool = False
    bucket: int | None = None
    aux: list[Tensor] = field(default_factory=list)
    vit_cls: Tensor | None = None
    vit_logits: Tensor | None = None
    answers: Tensor | None = None
    counts: list[LayerCount] = field(default_factory=list)
    late: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    dense: LayerCount = field(default_factory=LayerCount)
    text_rows: int = 0
    logit_rows: int = 0
    forwards: int = 0
    kv_bytes: int = 0
    kv_bytes_dense: int = 0
    logit_rows_saved: int = 0
    asked: dict[int, Asked] = field(default_factory=dict)
    loss_only: bool = False
    running: dict[int, tuple[LayerPlan, int, tuple[int, ...] | None, LayerPlan, bool, bool]] = field(
        default_factory=dict
    )
    last_rows: RowMap | None = None
    plans: dict[int, LayerPlan] = field(default_factory=dict)
    owner: dict[str, int] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy of the model takes along: no tensor that still belongs to a step's graph, and no running forward."""
        return {**self.__dict__, "aux": [loss.detach() for loss in self.aux], "owner": {}, "asked": {}}

    @property
    def layers(self) -> list[LayerCount]:
        """Sums per layer, whole: waits for a device if one still holds some of them."""
        for (i, name), rows in self.late.items():
            setattr(self.counts[i], name, getattr(self.counts[i], name) + int(rows))
        self.late = {}
        return self.counts

    @layers.setter
    def layers(self, counts: list[LayerCount]) -> None:
        self.counts, self.late = counts, {}

    def enter(self, module: nn.Module) -> None:
        """A forward of ``module`` starts. Raises ModelError while one of another thread runs: they would select for each
        other. One that Ctrl-C has ended did not leave: torch calls no hook then.
        """
        owner = self.owner.setdefault("thread", get_ident())
        if owner != get_ident():
            if is_called(module, owner):
                raise ModelError(
                    "the model is running in another thread, and an attached method serves one forward at a time; "
                    "use a lock, or one copy.deepcopy of the model per thread"
                )
            self.owner["thread"] = get_ident()
        asked = self.asked_here()
        if asked is not None and asked.begun:
            del self.asked[get_ident()]
        elif asked is not None:
            asked.begun = True

    def asked_here(self) -> Asked | None:
        """What this thread's forward of the whole model is asked for; None where it runs none.

        A compiled graph cannot ask which thread it is in; what one forward alone is asked for, it is asked for here.
        """
        if torch.compiler.is_compiling():
            return next(iter(self.asked.values())) if len(self.asked) == 1 else None
        return self.asked.get(get_ident()) if self.asked else None

    def leave(self) -> bool:
        """A forward has ended. False if it is not the one that runs here: it was refused."""
        if self.owner.get("thread") != get_ident():
            return False
        self.owner.clear()
        return True

    def reset(self, layers: int) -> None:
        self.layers = [LayerCount() for _ in range(layers)]
        self.dense = LayerCount()
        self.text_rows = self.logit_rows = self.logit_rows_saved = 0
        self.forwards = self.kv_bytes = self.kv_bytes_dense = 0
        self.last_rows, self.plans = None, {}

    def begin(self, rows: RowMap | None) -> None:
        self.rows = rows
        self.running, self.aux, self.vit_cls, self.vit_logits = {}, [], None, None
        asked = self.asked_here()
        self.padding_read = asked is not None and asked.padding
        if rows is not None and asked is not None and (asked.labelled is not None or not self.uniform):
            asked.note(rows)

    def record(
        self,
        layer: int,
        plan: LayerPlan,
        slots: int,
        samples: tuple[int, ...] | None = None,
        ran: LayerPlan | None = None,
        packed: bool = False,
        ordered: bool = False,
    ) -> None:
        self.running[layer] = (plan, slots, samples, ran or plan, packed, ordered)
        if plan.aux is not None:
            self.aux.append(plan.aux.to(self.aux[0].device) if self.aux else plan.aux)

    def finish(self, batch: int, length: int, cache: Any) -> None:
        """Close a forward of ``[batch, length]`` rows: layers that recorded nothing ran every row.

        Runs at every decode step, so a step without vision rows only adds one number per layer.
        """
        rows, n, stored = self.rows, batch * length, [] if cache is None else cache.layers
        slots = [stored_slots(layer) for layer in stored] or [length] * len(self.counts)
        self.forwards += 1
        if rows is None:
            self.text_rows += n
        exact = None if rows is None else rows.exact or rows
        vision = 0 if exact is None else sum(map(sum, exact.sizes))
        self.dense.add(n, n * max(0 if cache is None else dense_length(cache), length), vision)
        for i, count in enumerate(self.counts):
            if i in self.running:
                self._add(i, batch, length, vision, *self.running[i])
            elif rows is None:
                count.pairs += n * slots[i]
            else:
                count.add(n, n * slots[i], vision)
        if rows is not None and rows.has_vision:
            forget_graphs(rows.memo)
            self.last_rows, self.plans = exact, {i: _detached(plan) for i, (plan, *_) in self.running.items()}
        if cache is not None:
            self._measure_cache(cache, batch)
        self.rows = None
        self.running = {}

    def _measure_cache(self, cache: Any, batch: int) -> None:
        keys = next((layer.keys for layer in cache.layers if stored_slots(layer)), None)
        row_bytes = 0 if keys is None else 2 * batch * keys.shape[1] * keys.shape[3] * keys.element_size()
        seen = dense_length(cache)
        held = [
            stored_slots(layer) if is_static(layer) else min(seen, w - 1) if (w := window_of(layer)) else seen
            for layer in cache.layers
        ]
        self.kv_bytes, self.kv_bytes_dense = kv_bytes(cache), row_bytes * sum(held)

    def _add(
        self,
        layer: int,
        batch: int,
        length: int,
        vision: int,
        plan: LayerPlan,
        slots: int,
        samples: tuple[int, ...] | None,
        part: LayerPlan,
        packed: bool,
        ordered: bool,
    ) -> None:
        assert self.rows is not None
        step, count = self.rows, self.counts[layer]
        attending = batch if samples is None else len(samples)

        def padded(rows: Any) -> int:  # a set of all rows runs ungathered, padding included
            width = length if step.is_all(rows) else rows.width
            return width * (attending if rows is part.attend else batch)

        def ran(rows: Any) -> int:
            return len(rows) if packed and not rows.bounds else padded(rows)

        def seen(name: str, rows: Any) -> int:  # vision rows in a set; 0 where only the device can count them, yet
            if not step.has_vision:
                return 0
            exact = not (step.bounds or rows.bounds)
            if exact and (rows.sizes is not None or step.is_all(rows)):
                return sum(map(sum, step.sizes if rows.sizes is None else rows.sizes))
            if self.every_step or not exact:  # with text rows left out, or fillers in
                found, before = (rows.mask.to(step.vision.device) & step.vision).sum(), self.late.get((layer, name))
                self.late[layer, name] = found if before is None else before.to(found.device) + found
                return 0
            return sum(rows.counts) - sum(step.text_counts)

        attend, expose = ran(part.attend), ran(part.expose)
        count.rows += batch * length
        count.attend += attend
        count.expose += expose
        count.ffn += ran(part.ffn)
        count.cache += padded(part.cache)  # what is held is padded
        if ordered:
            asking = [part.attend.width] * batch if part.attend.bounds else part.attend.counts
            count.pairs += sum(a * (slots + e) for a, e in zip(asking, part.expose.counts))
        else:
            queries, keys = padded(part.attend), padded(part.expose)
            count.pairs += queries * (slots + keys // (attending if part.expose is part.attend else batch))
        count.vision += vision
        count.kept += seen("kept", plan.attend)
        count.kept_ffn += seen("kept_ffn", plan.ffn)


def count_logit_rows(state: StepState, module: Any, args: tuple[Tensor, ...]) -> None:
    """Forward pre-hook of the LM head."""
    if args:
        state.logit_rows += args[0].shape[:-1].numel()


def forget_graphs(memo: dict[Any, Any]) -> None:
    """Take out what a method has noted with a graph, which must not outlive the step; in memos within, too."""
    for key, value in list(memo.items()):
        if isinstance(value, Tensor) and value.requires_grad:
            del memo[key]
        elif isinstance(value, dict | RowMap):
            forget_graphs(value if isinstance(value, dict) else value.memo)


def _detached(plan: LayerPlan) -> LayerPlan:
    """The plan's rows without the gains, whose graph must not outlive the step."""
    return LayerPlan(plan.attend, plan.expose, plan.ffn, plan.cache)


def is_called(module: nn.Module, thread: int) -> bool:
    """Whether ``thread`` is inside a call of ``module``."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code.co_name == "_wrapped_call_impl" and frame.f_locals.get("self") is module:
            return True
        frame = frame.f_back
    return False


def window_of(layer: Any) -> int | None:
    """Sliding window of a cache layer, ours or a stock one."""
    return getattr(layer, "window", None) or getattr(layer, "sliding_window", None)
