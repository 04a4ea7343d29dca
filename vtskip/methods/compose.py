"""Several methods on one model: a layer runs, for each row, what all methods that plan the layer let it run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, SerializeAsAny, field_validator
from torch import Tensor, nn

from vtskip.errors import ConfigError, VtskipError
from vtskip.methods.base import LayerPlanner, Method
from vtskip.plan import (
    ANSWERS,
    CARRIED,
    LIVE,
    MOVABLE,
    SCORES,
    UNIFORM,
    VIEWS,
    VIT_CLS,
    VIT_LOGITS,
    DecoderShape,
    LayerPlan,
    RowMap,
    RowSet,
)

NOTES = "compose"  # key of RowMap.memo
SETS = ("attend", "expose", "ffn", "cache")
SHOWN = (SCORES, CARRIED, VIT_CLS, VIT_LOGITS, ANSWERS, LIVE)  # what all methods are told


class Compose(Method):
    """Each layer is planned by all ``methods`` that plan it; most often that is one.

    Methods that drop rows for good (fastv, pyramid_drop, aim, skip_vision, ...) come first in a layer, the others behind
    them as listed. Each chooses among the rows that those before it let into the layer: ``keep`` is a share of these,
    ranked in their images or frames, or over the sample behind a method that ranks over the sample; lists of offsets count
    what is left. A row attends, is read, runs the FFN or stays in the cache where all of them let it. Gains multiply,
    auxiliary losses add up. One method alone is itself.

    Refused are, in one layer: methods of which one runs no vision row (shortv, layer_skip); one that thins out a layer's
    parts (skip_ffn, mindskip) before one that chooses its rows; one that decides about text before another; two that rewrite
    rows, score rows in different ways, or weigh different things.

    Rows are counted on the host as by the methods alone, but for parts that two methods have thinned out independently (the
    FFN of skip_vision under a router or another drop): there the smaller number is run, with fillers.

    Attributes:
        methods: each as it stands alone (a mapping with ``name``, a name, or a YAML file); compositions inside are unfolded.
    """

    skips: ClassVar[str] = "what any of several methods skips"

    name: Literal["compose"] = "compose"
    methods: list[SerializeAsAny[Method]] = Field(min_length=1)

    @field_validator("methods", mode="before")
    @classmethod
    def _each(cls, specs: Any) -> Any:
        from vtskip.methods import get_method

        if not isinstance(specs, list | tuple):
            return specs
        found: list[Method] = []
        for i, spec in enumerate(specs):
            try:
                method = get_method(spec)
            except VtskipError as e:
                raise ConfigError(f"number {i}: {e}") from None
            found += method.methods if isinstance(method, Compose) else [method]
        return found

    def planners(self, shape: DecoderShape) -> list[LayerPlanner | None]:
        if len(self.methods) == 1:
            return self.methods[0].planners(shape)
        of_each = [method.planners(shape) for method in self.methods]
        return [self.planner_of(i, [planners[i] for planners in of_each]) for i in range(shape.layers)]

    def planner_of(self, layer: int, planners: list[LayerPlanner | None]) -> LayerPlanner | None:
        parts = {i: planner for i, planner in enumerate(planners) if planner is not None}
        names = {i: self.methods[i].name for i in parts}
        for i, j in combinations(parts, 2):
            if why := collision(parts[i], parts[j], names[i], names[j]):
                raise ConfigError(f"layer {layer}: {why}")
        return ComposedPlanner(dict(sorted(parts.items(), key=lambda part: not part[1].drops))) if parts else None


def methods_of(method: Any) -> list[Any]:
    """The methods of a composition; any other alone."""
    return list(method.methods) if isinstance(method, Compose) else [method]


def collision(first: LayerPlanner, second: LayerPlanner, a: str, b: str) -> str | None:
    """Why two planners, ``first`` listed before ``second``, cannot plan one layer; ``a`` and ``b`` are their methods."""
    rewrites = [MOVABLE in planner.needs for planner in (first, second)]
    if all(rewrites):
        return f"{a} and {b} both rewrite rows; use one of them"
    if any(rewrites) and SCORES in first.needs | second.needs:
        mover, ranker = (a, b) if rewrites[0] else (b, a)
        return f"{ranker} ranks rows by their attention as they come in, where {mover} still rewrites them; let it begin later"
    if rewrites[0] and second.needs & {VIT_CLS, VIT_LOGITS, VIEWS}:
        return f"{b} ranks rows by their place in the image, where {a} has put others: list {b} before {a}"
    if first.score and second.score and first.score != second.score:
        return f"{a} and {b} score its rows in different ways; give them different layers"
    if first.drops or second.drops:
        return None
    if first.every_step:
        other = "both decide about text; use one of them" if second.every_step else f"list {a} behind {b}"
        return f"{a} decides about text rows too, and {b} chooses among vision rows: {other}"
    if "none" in (first.leaves, second.leaves):
        idle, other = (a, b) if first.leaves == "none" else (b, a)
        return f"{idle} runs no vision row there, so that nothing is left for {other}; give them different layers"
    if first.leaves == "parts" and second.leaves == "rows":
        return f"{a} thins out what rows run, {b} which rows run: list {b} before {a}"
    if first.weighs and second.weighs and first.weighs != second.weighs:
        return f"{a} weighs the {first.weighs} of the layer, {b} its {second.weighs}; give both the same form"
    return None


class ComposedPlanner(LayerPlanner):
    """Asks the planners of one layer in turn. ``parts``: by their method's place in the list, in the order of asking."""

    sees = "both"

    def __init__(self, parts: dict[int, LayerPlanner]):
        super().__init__()
        self.methods = nn.ModuleDict({str(i): planner for i, planner in parts.items()})
        planners = list(parts.values())
        self.every_step, self.compact = any(p.every_step for p in planners), any(p.compact for p in planners)
        self.skips_vision = any(p.skips_vision for p in planners)
        self.needs = frozenset[str]().union(*(p.needs for p in planners))
        self.joined = len(planners) == 1 and getattr(planners[0], "joined", False)  # see `ShortV.joined`

    def forward(self, rows: RowMap, hidden: Tensor, norm: Callable[[Tensor], Tensor] | None = None) -> LayerPlan:
        """``norm``: the layer's first; without it ``hidden`` is shown to every planner as it is."""
        notes = rows.memo.setdefault(NOTES, {})
        whole: RowSet = notes.get("live", rows.everything)  # what the next planner chooses among
        plan, normed = None, None
        for place, part in self.methods.items():
            if not (rows.has_vision or part.every_step or rows.memo.get(UNIFORM, True)):
                continue
            seen = hidden
            if norm is not None and part.sees == "normed":
                seen = normed = norm(hidden) if normed is None else normed
            own = part(view_of(rows, notes.get(("basis", place), whole), notes, place, part.drops), seen)
            cover, left = whole, largest(own)
            if part.drops:
                own, cover, left = dropped(rows, own, whole, notes, place)
            if plan is not None or cover is not whole:
                own = agreed(LayerPlan.of(whole) if plan is None else plan, own, whole, cover, rows)
            if own.edit is not None:
                hidden, normed = own.edit, None
            plan, whole = own, left
        return LayerPlan.of(rows.everything) if plan is None else plan


def largest(plan: LayerPlan) -> RowSet:
    """The rows that a plan lets into the layer: one of its sets holds the others."""
    attention = plan.attend if len(plan.attend) >= len(plan.expose) else plan.expose
    return attention if len(attention) >= len(plan.ffn) else plan.ffn


def view_of(rows: RowMap, whole: RowSet, notes: dict[Any, Any], place: str, keeps: bool) -> RowMap:
    """``rows`` as the planner at ``place`` sees them, with a memo of its own, which ``keeps`` carries on to other views."""
    views = notes.setdefault("views", {})
    view = views.get(place)
    if view is None or view.everything is not whole:
        view = views[place] = rows.within(whole, view.memo if keeps and view is not None else {})
    view.memo.update({k: v for k, v in rows.memo.items() if (k[0] if isinstance(k, tuple) else k) in SHOWN})
    return view


def dropped(
    rows: RowMap, own: LayerPlan, whole: RowSet, notes: dict[Any, Any], place: str
) -> tuple[LayerPlan, RowSet, RowSet]:
    """The plan of one that drops rows for good; the rows it was chosen among; and those that are left.

    A decision of an earlier layer comes back as the same object; meanwhile others may have dropped more. Shares of later
    stages are of the rows that it found when it first dropped some.
    """
    inside = largest(own)
    if notes.get(("last", place)) is inside:
        return own, inside, whole
    notes["last", place], left = inside, inside
    counts = tuple(min(n, m) for n, m in zip(inside.counts, whole.counts))
    if counts != inside.counts:  # its share is more than there is: with rows that are gone, which it ranks last
        left = whole if counts == whole.counts else RowSet(inside.mask & whole.mask, counts)
        cut: dict[str, Any] = {n: left if (s := getattr(own, n)) is inside else s.both(left) for n in SETS}
        own = replace(own, **cut)
    if left is not whole:
        notes.setdefault(("basis", place), whole)
        notes["live"], rows.memo[LIVE] = left, left.mask
    return own, whole, left


def agreed(first: LayerPlan, second: LayerPlan, whole: RowSet, cover: RowSet, rows: RowMap) -> LayerPlan:
    """What two plans both let run: ``first`` within ``whole``, ``second`` chosen among the rows of ``cover``, which holds it."""
    known = rows.memo[NOTES].setdefault("both", {})

    def meet(a: RowSet, b: RowSet) -> RowSet:
        if b is cover or a is b:
            return a
        if a is whole and cover is whole:
            return b
        if a is rows.text or b is rows.text:
            return rows.text
        for pair in known.values():
            if (pair["a"] is a and pair["b"] is b) or (pair["a"] is b and pair["b"] is a):
                return pair["both"]
        known[len(known)] = {"a": a, "b": b, "both": a.both(b)}
        return known[len(known) - 1]["both"]

    sets: dict[str, Any] = {name: meet(getattr(first, name), getattr(second, name)) for name in SETS}
    aux = second.aux if first.aux is None else first.aux if second.aux is None else first.aux + second.aux
    plan = LayerPlan(
        **sets,
        gain_attn=product(first.gain_attn, second.gain_attn),
        gain_ffn=product(first.gain_ffn, second.gain_ffn),
        gain_key=product(first.gain_key, second.gain_key),
        score=first.score or second.score,
        edit=first.edit if second.edit is None else second.edit,
        carry=first.carry if second.carry is None else second.carry,
        aux=aux,
    )
    weigh(plan, [part for part in (first, second) if part.gain_row is not None])
    return plan


def weigh(plan: LayerPlan, parts: list[LayerPlan]) -> None:
    """Give ``plan`` the row gains of ``parts``: each weighs what the layer, as those behind it leave it, makes of its rows."""
    if not parts:
        return
    only = parts[0]
    plan.gain_on = only.gain_on
    if len(parts) == 1 and plan.one_set == only.one_set and all(getattr(plan, n) is getattr(only, n) for n in SETS[:3]):
        plan.gain_row, plan.gain_skipped = only.gain_row, only.gain_skipped
        return
    for part in parts:
        gain = part.gain_row
        if part.one_set and not part.gain_skipped:
            gain = torch.where(part.attend.mask, gain, 1.0)
        plan.gain_row = product(plan.gain_row, gain)
    plan.gain_skipped = plan.gain_on == "output"


def product(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a * b
