"""Tables that ``stream`` and ``eval`` print."""

from typing import Any

from rich.table import Table

ACCURACY = {
    "TimeDiff s": ("reference", "time_diff"),
    "Fluency": ("reference", "fluency"),
    "LM-PPL": ("reference", "lm_ppl"),
    "LM-Corr.": ("reference", "lm_correctness"),
    "strict TimeDiff s": ("strict", "time_diff"),
    "content Corr.": ("strict", "correctness"),
    "F1@1s": ("strict", "timing_f1@1"),
}
COST = {"FLOPs": "flops_ratio", "KV": "kv_ratio", "ms/frame": "seconds_per_frame_p50"}


def stamp(seconds: float) -> str:
    """``MM:SS.s``."""
    tenths = round(seconds * 10)
    return f"{tenths // 600:02d}:{tenths // 10 % 60:02d}.{tenths % 10}"


def cost_table(cost: dict[str, Any], frame_tokens: int) -> Table:
    """What a live session cost."""
    table = Table(title="cost", show_header=False)
    table.add_row("frames, replies, reply tokens", f"{cost['frames']}, {cost['replies']}, {cost['reply_tokens']}")
    table.add_row("frames per second", f"{cost['frames_per_second']:.2f}")
    p50, p95 = cost["seconds_per_frame_p50"] * 1000, cost["seconds_per_frame_p95"] * 1000
    table.add_row("ms per frame, median and 95 %", f"{p50:.1f}, {p95:.1f}")
    if "kv_bytes" in cost:
        kept = cost["kept_per_frame"]
        table.add_row(f"kept tokens per layer (of {frame_tokens})", " ".join(f"{k:g}" for k in kept))
        if cost["kept_ffn_per_frame"] != kept:
            table.add_row("  of them through the FFN", " ".join(f"{k:g}" for k in cost["kept_ffn_per_frame"]))
        own, dense = cost["kv_bytes"], cost["kv_bytes_dense"]
        table.add_row("KV bytes, dense", f"{own:,} of {dense:,} ({own / dense:.2f})" if dense else "0")
    return table


def eval_table(record: dict[str, Any]) -> Table:
    """Accuracy beside cost, one line per row; cost is relative to dense."""
    title = f"{record['name']}: {record['n_samples']} conversations, {record['n_turns']} turns"
    table = Table(title=title)
    table.add_column("row")
    for name in [*ACCURACY, *COST]:
        table.add_column(name, justify="right")
    for row, accuracy in record["accuracy"].items():
        cost = record["cost"].get(row, {})
        cells = [_number(accuracy[flavour].get(key)) for flavour, key in ACCURACY.values()]
        for name, key in COST.items():
            value = cost.get(key)
            cells.append(_number(value * 1000 if value is not None and name == "ms/frame" else value))
        table.add_row(row.replace("_", "-"), *cells)
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if abs(value) >= 100 else f"{value:.3f}"
