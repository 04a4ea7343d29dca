"""The report of an attached model: what ran, next to what the dense model would have run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from vtskip.cost import full_flops, head_flops, linear_flops
from vtskip.plan import DecoderShape
from vtskip.runtime.stats import StepState


@dataclass
class LayerReport:
    """One decoder layer. Row counts are sums over samples and forwards; ``kept``/``kept_ffn`` are shares of the vision rows.

    ``groups``: vision rows kept in each frame or image, per sample, in the last forward that had any (none known of a
    model without weights, on the meta device).
    """

    layer: int
    rows: int
    attend: int
    expose: int
    ffn: int
    cache: int
    kept: float
    kept_ffn: float
    groups: list[list[int]]


@dataclass
class Report:
    """What ran since attach or reset. FLOPs of the decoder and LM head; KV bytes of the rows in the last forward's cache."""

    method: str
    forwards: int
    layers: list[LayerReport]
    flops_linear: int
    flops_linear_dense: int
    flops_full: int
    flops_full_dense: int
    kv_bytes: int
    kv_bytes_dense: int

    @property
    def kept_vision(self) -> list[float]:
        """Share of the vision rows that issue a query, per layer."""
        return [layer.kept for layer in self.layers]

    @property
    def flops_ratio(self) -> float:
        return self.flops_full / self.flops_full_dense if self.flops_full_dense else 1.0

    @property
    def kv_ratio(self) -> float:
        return self.kv_bytes / self.kv_bytes_dense if self.kv_bytes_dense else 1.0

    def as_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "kept_vision": self.kept_vision,
            "flops_ratio": self.flops_ratio,
            "kv_ratio": self.kv_ratio,
        }


def make_report(method: str, shape: DecoderShape, state: StepState) -> Report:
    head, saved = head_flops(shape, state.logit_rows), head_flops(shape, state.logit_rows_saved)
    layers, counts = [], [count.with_text(state.text_rows) for count in state.layers]
    for i, count in enumerate(counts):
        layers.append(
            LayerReport(
                layer=i,
                rows=count.rows,
                attend=count.attend,
                expose=count.expose,
                ffn=count.ffn,
                cache=count.cache,
                kept=count.kept / count.vision if count.vision else 1.0,
                kept_ffn=count.kept_ffn / count.vision if count.vision else 1.0,
                groups=_kept_per_group(state, i),
            )
        )
    return Report(
        method=method,
        forwards=state.forwards,
        layers=layers,
        flops_linear=head + sum(linear_flops(shape, c) for c in counts),
        flops_linear_dense=head + saved + shape.layers * linear_flops(shape, state.dense),
        flops_full=head + sum(full_flops(shape, c) for c in counts),
        flops_full_dense=head + saved + shape.layers * full_flops(shape, state.dense),
        kv_bytes=state.kv_bytes,
        kv_bytes_dense=state.kv_bytes_dense,
    )


def _kept_per_group(state: StepState, layer: int) -> list[list[int]]:
    rows = state.last_rows
    if rows is None or rows.vision.is_meta:
        return []
    kept: Tensor = rows.vision if layer not in state.plans else state.plans[layer].attend.mask & rows.vision
    width = max((len(s) for s in rows.sizes), default=0) + 1
    table = kept.new_zeros(kept.shape[0], width, dtype=rows.group.dtype).scatter_add(1, rows.group + 1, kept.long())
    return [row[1 : 1 + len(sizes)] for row, sizes in zip(table.tolist(), rows.sizes)]
