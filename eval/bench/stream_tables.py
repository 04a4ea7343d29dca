"""The record of the streaming bench as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEAD = "| method | ms/frame | ratio | weights | KV | FLOPs | over floor | KV MB | GFLOP/frame |"


def stream_markdown(record: Mapping[str, Any]) -> str:
    """One table per cell, floors in milliseconds per frame; then the bounded stream, and growth without bounds."""
    roof, c = record["roof"], record["config"]
    parts = [
        f"Hidden {c['hidden']} x {c['layers']} layers, {c['frame_rows']} rows per frame, {record['weight_bytes'] / 1e6:.0f} MB "
        f"of weights; {roof['matrix_gflops_per_second']:.0f} GFLOP/s, {roof['bandwidth_gb_per_second']:.1f} GB/s. `dense` is "
        "the stock model with its own cache. Floors (milliseconds per frame): reading the weights, reading the cache, the "
        "products; `over floor` is the measured time over the larger of bytes and products."
    ]
    for cell in record["cells"]:
        parts += [_title(cell), _cell_table(cell)]
    parts += bounded_table(record)
    return "\n\n".join(parts)


def _title(cell: Mapping[str, Any]) -> str:
    streams = "one stream" if cell["streams"] == 1 else f"{cell['streams']} streams"
    return f"**{cell['context']} cached frames, {cell['frames_per_step']} per step, {streams}**"


def _cell_table(cell: Mapping[str, Any]) -> str:
    graphs = any("graph" in row for row in cell["rows"])
    lines = [HEAD + (" graph ms/frame |" if graphs else ""), "|---" * (9 + graphs) + "|"]
    for row in cell["rows"]:
        time, floor = row["ms_per_frame"], row["floor_ms"]
        values = [f"{time['median']:.3f} ({time['p20']:.3f} to {time['p80']:.3f})", f"{row['time_ratio']:.3f}"]
        values += [f"{floor[name]:.3f}" for name in ("weights", "kv", "flops")]
        values += [f"{row['over_floor']:.2f}", f"{row['kv_bytes_per_step'] / 1e6:.1f}"]
        values += [f"{row['flops_per_frame'] / 1e9:.3f}"]
        if graphs:
            graph = row.get("graph", "")
            values.append(graph if isinstance(graph, str) else f"{graph['median']:.3f}")
        lines.append("| " + " | ".join([f"`{row['name']}`", *values]) + " |")
    return "\n".join(lines)


def bounded_table(record: Mapping[str, Any]) -> list[str]:
    """Time per frame late over early: of a bounded stream measured, of an unbounded one from the cells of one stream."""
    lines = ["| stream | frames | ms/frame | frames | ms/frame | late over early |", "|---|---|---|---|---|---|"]
    for row in record["bounded"]:
        early, late = (f"{n} | {ms:.3f}" for n, ms in zip(row["frames"], row["ms_per_frame"]))
        spread = f"{row['ratio']['median']:.3f} ({row['ratio']['p20']:.3f} to {row['ratio']['p80']:.3f})"
        lines.append(f"| `{row['name']}`, {row['window_frames']} frames held | {early} | {late} | {spread} |")
    single = [cell for cell in record["cells"] if (cell["frames_per_step"], cell["streams"]) == (1, 1)]
    single.sort(key=lambda cell: cell["context"])
    if len(single) > 1:
        first, last = single[-2], single[-1]
        for early, late in zip(first["rows"], last["rows"]):
            a, b = (row["ms_per_frame"]["median"] for row in (early, late))
            cells = f"{first['context']} | {a:.3f} | {last['context']} | {b:.3f} | {b / a:.3f}"
            lines.append(f"| `{early['name']}`, unbounded | {cells} |")
    return ["\n".join(lines)] if len(lines) > 2 else []
