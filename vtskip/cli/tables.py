"""Tables that ``stream`` and ``eval`` print."""

from typing import Any

from rich import box
from rich.table import Table

ACCURACY = {  # column title -> flavour, metric
    "Time-\nDiff s": ("reference", "time_diff"),
    "Flu-\nency": ("reference", "fluency"),
    "LM-\nPPL": ("reference", "lm_ppl"),
    "LM-\nCorr.": ("reference", "lm_correctness"),
    "strict\nDiff s": ("strict", "time_diff"),
    "content\nCorr.": ("strict", "correctness"),
}
COST = {
    "FLOPs\nratio": ("flops_ratio", 1),
    "KV\nratio": ("kv_ratio", 1),
    "ms per\nframe": ("seconds_per_frame_p50", 1000),
}


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
    """Accuracy beside cost, one line per row, within 80 columns; cost is relative to dense."""
    title = f"{record['name']}: {record['n_samples']} conversations, {record['n_turns']} turns"
    table = Table("row", title=title, box=box.SIMPLE_HEAD, padding=0)
    for name in [*ACCURACY, *COST]:
        table.add_column(name, justify="right", no_wrap=True)
    for row, accuracy in record["accuracy"].items():
        cost = record["cost"].get(row, {})
        cells = [_number(accuracy[flavour].get(key)) for flavour, key in ACCURACY.values()]
        cells += [_number(cost[key] * scale) if key in cost else "" for key, scale in COST.values()]
        table.add_row(row.replace("_", "-"), *cells)
    return table


def verdict(record: dict[str, Any]) -> str:
    """The comparison with the rows that do not look, in one line."""
    gain, parts = record["comparison"], []
    if "blind" in record["accuracy"]:
        own, blind = (_number(record["accuracy"][row]["strict"]["correctness"]) for row in ("model", "blind"))
        parts.append(f"content correctness {own}, blind {blind}")
    for name in ("always_speak", "never_speak"):
        saved = gain[f"time_diff_saved_against_{name}"]
        if saved is not None:
            parts.append(
                f"strict TimeDiff {abs(saved):.2f} s {'below' if saved > 0 else 'above'} {name.replace('_', '-')}"
            )
    return "; ".join(parts)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if abs(value) >= 100 else f"{value:.3f}"
