"""Records of the bench as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vtskip.eval.bench.subjects import CONTROL, DENSE

COLUMNS = ("flops", "prefill_time", "train_time", "decode_time", "kv", "peak_memory")
OPTIONAL = ("checkpointed_time", "prefill_peak")
ROOF = (("prefill", "matrix"), ("decode", "bandwidth"), ("train", "matrix"))


def markdown(record: Mapping[str, Any]) -> str:
    """One table of ratios to the stock model; with cases a heading and a table for each, then the extrapolation if any."""
    if record["kind"] == "bench_stream":
        from vtskip.eval.bench.stream_tables import stream_markdown

        return stream_markdown(record)
    parts = []
    for name, block in blocks(record):
        parts += [heading(name, block)] if name else []
        parts += [ratios(block), *depth_table(block)]
    parts += kernel_table(record)
    return "\n\n".join(parts)


def blocks(record: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Name and block of every case; one without a name where there are none."""
    return [(case["name"], case) for case in record["cases"]] if "cases" in record else [("", record)]


def heading(name: str, block: Mapping[str, Any]) -> str:
    c, padding = block["setting"], block.get("padding_share", 0)
    uneven = f", uneven lengths, {padding:.3f} of the rows padding" if padding else ""
    return (
        f"**{name}**: hidden {c['hidden']} x {c['layers']} layers, {c['vision_rows']} vision and {c['text_rows']} text rows, "
        f"batch {c['batch']}{uneven}"
    )


def ratios(block: Mapping[str, Any]) -> str:
    """The first row is dense measured again, with half the spread of its ratio."""
    rows = [row for row in block["methods"] if row["name"] not in (DENSE, CONTROL)]
    shown = [*COLUMNS, *(c for c in OPTIONAL if any(row.get(f"{c}_ratio") is not None for row in rows))]
    shown = [c for c in shown if any(row.get(f"{c}_ratio") is not None for row in rows)]
    control = next(row for row in block["methods"] if row["name"] == CONTROL)
    noise = block["noise"]

    def of_control(column: str) -> str:
        spread = noise.get(column.removesuffix("_time")) if column.endswith("_time") else None
        value = control.get(f"{column}_ratio")
        return _cell(value) if spread is None or value is None else f"{value:.3f} ± {spread / 2:.3f}"

    lines = [_line(["method", *(c.replace("_", " ") for c in shown)]), "|---|" + "---|" * len(shown)]
    lines.append(_line(["dense again (noise)", *map(of_control, shown)]))
    for row in rows:
        name = (
            f"`{row['name']}`"
            if row["method"] is not None and row.get("run", "attached") == "attached"
            else row["name"]
        )
        lines.append(_line([name, *(_cell(row.get(f"{c}_ratio")) for c in shown)]))
    lines += [f"\nLeft out: {out['name']} ({out['reason']})." for out in block.get("left_out", [])]
    return "\n".join(lines)


def depth_table(block: Mapping[str, Any]) -> list[str]:
    deep = block.get("full_depth")
    if deep is None:
        return []
    head = (
        f"Extrapolated from {deep['measured_layers']} to {deep['layers']} layers in proportion to FLOPs, not measured:"
    )
    lines = [_line(["method", "FLOPs ratio", "prefill ms", "training step ms", "KV MB"]), "|---|---|---|---|---|"]
    for row in deep["rows"]:
        step = row["estimated_train_ms"]
        values = [
            f"{row['flops_ratio']:.3f}",
            f"{row['estimated_prefill_ms']:.0f}",
            "" if step is None else f"{step:.0f}",
        ]
        lines.append(_line([f"`{row['name']}`", *values, f"{row['kv_bytes'] / 1e6:.0f}"]))
    return [head, "\n".join(lines)]


def roofline(record: Mapping[str, Any]) -> str:
    """Shares of the machine's measured matrix rate and bandwidth, per phase."""
    roof = record["roof"]
    parts = [
        f"This machine: {roof['matrix_gflops_per_second']:.0f} GFLOP/s in matrix products, "
        f"{roof['bandwidth_gb_per_second']:.1f} GB/s."
    ]
    for name, block in blocks(record):
        shown = [(p, what) for p, what in ROOF if any(p in row["roofline"] for row in block["methods"])]
        lines = [_line(["method", *(f"{p}, share of {what}" for p, what in shown)]), "|---|" + "---|" * len(shown)]
        for row in block["methods"]:
            values = [_cell(row["roofline"].get(p, {}).get(what)) for p, what in shown]
            lines.append(_line([row["name"], *values]))
        parts += ([heading(name, block)] if name else []) + ["\n".join(lines)]
    return "\n\n".join(parts)


def kernel_table(record: Mapping[str, Any]) -> list[str]:
    found = record.get("kernels", [])
    if not found:
        return []
    times = ("forward", "forward and backward")
    head = ["attention", "kernel", *(f"{t} ms" for t in times), *(f"{t}, speed" for t in times), "error"]
    lines = [_line(head), "|---" * len(head) + "|"]
    for case in found:
        for row in case["kernels"]:
            cells = [_cell(row.get(key)) for key in ("forward_ms", "both_ms", "forward_speed", "both_speed")]
            error = row["reason"] if "reason" in row else f"{row['error']:.1e}"
            name = f"{case['name']}, against {case['against']}"
            lines.append(_line([name, f"`{row['kernel']}`", *cells, error]))
    return ["\n".join(lines)]


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
