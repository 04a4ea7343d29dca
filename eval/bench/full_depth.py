"""From some layers of a model to all of them: an extrapolation, kept apart from what was measured."""

from __future__ import annotations

from typing import Any

import torch

from vtskip.cost import full_flops, head_flops, kv_row_bytes
from vtskip.eval.bench.batch import build_model, make_batch
from vtskip.eval.bench.config import Decoder, Setting
from vtskip.eval.bench.subjects import DENSE, Subject, worn
from vtskip.plan import DecoderShape
from vtskip.runtime.stats import LayerCount

NARROW = Decoder(hidden=16, ffn=16, heads=1, kv_heads=1, vocab=8)  # the decoder that counts rows


def full_depth(
    setting: Setting, dtype: torch.dtype, seed: int, measured: list[tuple[Subject, dict[str, Any]]]
) -> dict[str, Any]:
    """Rows of stock and attached subjects at all layers of ``setting.shape``.

    FLOPs and KV bytes are counted: how many rows each layer runs does not depend on how wide it is, so a narrow decoder of
    the full depth tells. Times are the measured ones in proportion to FLOPs.

    Args:
        measured: subjects with the methods as they were asked for, and the rows of the record.
    """
    here, deep = (_shape(setting, layers) for layers in (setting.layers, setting.full_layers))
    dense = {
        shape.layers: _full(shape, [_dense_count(setting)] * shape.layers, setting.batch) for shape in (here, deep)
    }
    rows = []
    for subject, row in measured:
        if subject.name != DENSE and subject.run != "attached":
            continue
        counts = [_dense_count(setting)] * deep.layers if subject.spec is None else _counts(setting, subject, seed)
        flops = _full(deep, counts, setting.batch)
        deeper = flops / (row["flops_ratio"] * dense[here.layers])
        rows.append(
            {
                "name": subject.name,
                "method": subject.spec,
                "flops_ratio": round(flops / dense[deep.layers], 4),
                "kv_bytes": sum(count.cache for count in counts) * kv_row_bytes(deep, dtype.itemsize),
                "estimated_prefill_ms": round(deeper * row["prefill_ms"], 1),
                "estimated_train_ms": row["train_ms"] and round(deeper * row["train_ms"], 1),
            }
        )
    return {"layers": deep.layers, "measured_layers": here.layers, "rows": rows}


def _shape(setting: Setting, layers: int) -> DecoderShape:
    c = setting
    return DecoderShape(layers, c.hidden, c.ffn, c.heads, c.kv_heads, c.hidden // c.heads, c.vocab)


def _full(shape: DecoderShape, counts: list[LayerCount], batch: int) -> int:
    return sum(full_flops(shape, count) for count in counts) + head_flops(shape, batch)


def _dense_count(setting: Setting) -> LayerCount:
    batch = make_batch(setting, 1, "cpu", torch.float32, 0)
    count, rows = LayerCount(), setting.batch * batch.length
    count.add(rows, rows * batch.length, 0)
    return count


def _counts(setting: Setting, subject: Subject, seed: int) -> list[LayerCount]:
    """What each layer of the full depth runs in one prefill."""
    narrow = NARROW.model_copy(update={"layers": setting.full_layers})
    model = build_model(narrow, "cpu", torch.float32, seed)
    batch = make_batch(setting, narrow.hidden, "cpu", torch.float32, seed)
    with worn(subject, model, batch) as handle, torch.no_grad():
        model(inputs_embeds=batch.embeds, logits_to_keep=1, **batch.inputs(slice(0, batch.length)))
        return list(handle.state.layers)
