"""The tables that stand below a task's results: what its routers keep, and everything it costs."""

from collections.abc import Mapping, Sequence
from typing import Any

Entry = Mapping[str, Any]
NONE: dict[str, Any] = {"value": None, "low": None, "high": None, "items": 0, "clusters": 0}
ROUTER = {  # column -> metric of the flavour "router"
    "recall at k": "recall",
    "chance": "chance",
    "recall / chance": "enrichment",
    "static relevant kept": "static_relevant",
    "moving relevant kept": "moving_relevant",
    "moving irrelevant left out": "moving_irrelevant_rejected",
}
COSTS = {  # column -> key of a cost block, factor, digits
    "GFLOPs": ("flops_full", 1e-9, 2),
    "FLOPs ratio": ("flops_ratio", 1, 3),
    "linear FLOPs ratio": ("flops_linear_ratio", 1, 3),
    "KV MB": ("kv_bytes", 1e-6, 2),
    "KV ratio": ("kv_ratio", 1, 3),
    "ms/frame": ("seconds_per_frame_p50", 1e3, 2),
    "95 %": ("seconds_per_frame_p95", 1e3, 2),
    "frames/s": ("frames_per_second", 1, 1),
    "ms to first token": ("first_token_seconds_p50", 1e3, 2),
    "95 % ": ("first_token_seconds_p95", 1e3, 2),
    "tokens/s": ("tokens_per_second", 1, 1),
    "peak MB": ("peak_memory_bytes", 1e-6, 0),
}


def cell(estimate: Mapping[str, Any], signed: bool = False) -> str:
    """``0.640 [0.571, 0.702]``; empty where there is nothing."""
    if estimate["value"] is None:
        return ""
    sign = "+" if signed else ""
    interval = "" if estimate["low"] is None else f" [{estimate['low']:{sign}.3f}, {estimate['high']:{sign}.3f}]"
    return f"{estimate['value']:{sign}.3f}{interval}"


def lines_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return ["| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows]]


def names_of(entry: Entry, several: bool) -> list[str]:
    """The cells that say which row this is; the run only where there are several."""
    return [*([entry["run"]] if several else []), f"`{entry['row']}`"]


def router_table(entries: Sequence[Entry], several: bool) -> list[str]:
    """Of the rows whose kept rows are known against areas; nothing without any."""
    known = [entry for entry in entries if entry["scores"].get("router")]
    if not known:
        return []
    head = [*(["run"] if several else []), "rows kept", *ROUTER]
    rows = [
        [*names_of(e, several), *(cell(e["scores"]["router"].get(metric, NONE)) for metric in ROUTER.values())]
        for e in known
    ]
    return ["", *lines_of(head, rows)]


def cost_table(entries: Sequence[Entry], several: bool) -> list[str]:
    """Sums over all samples of a row, percentiles and rates; columns that nothing was measured for are left out."""
    known = [entry for entry in entries if entry["cost"]]
    columns = {name: value for name, value in COSTS.items() if any(value[0] in e["cost"] for e in known)}
    if not columns:
        return []
    head = [*(["run"] if several else []), "cost", *columns]
    rows = [[*names_of(e, several), *(_number(e["cost"], *column) for column in columns.values())] for e in known]
    return ["", *lines_of(head, rows)]


def _number(cost: Mapping[str, Any], key: str, factor: float, digits: int) -> str:
    return f"{cost[key] * factor:.{digits}f}" if key in cost else ""
