"""Tables that ``stream``, ``eval`` and ``data`` print, and the line that counts while ``data`` works."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

MOST = 20  # rows of a list

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


def reply(event: Any) -> str:
    """A line of a stream: when, what was asked, what was said."""
    return f"[{stamp(event.time)}] {event.query + ' ' if event.query else ''}{event.text}"


def cost_table(cost: dict[str, Any], frame_tokens: int) -> Table:
    """What a live session cost."""
    table = Table(title="cost", show_header=False)
    table.add_row("frames, replies, reply tokens", f"{cost['frames']}, {cost['replies']}, {cost['reply_tokens']}")
    table.add_row("frames per second", f"{cost['frames_per_second']:.2f}")
    p50, p95 = cost["seconds_per_frame_p50"] * 1000, cost["seconds_per_frame_p95"] * 1000
    table.add_row("ms per frame, median and 95 %", f"{p50:.1f}, {p95:.1f}")
    if cost.get("rows_forgotten"):
        table.add_row("rows held, forgotten", f"{cost['rows_held']}, {cost['rows_forgotten']}")
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
    counted = f"{record['n_samples']} conversations of {record['n_videos']} videos, {record['n_turns']} turns"
    title = f"{record['name']}: {counted}"
    table = Table("row", title=title, box=box.SIMPLE_HEAD, padding=0)
    for name in [*ACCURACY, *COST]:
        table.add_column(name, justify="right", no_wrap=True)
    for row, accuracy in record["accuracy"].items():
        cost = record["cost"].get(row, {})
        cells = [_number(accuracy[flavour].get(key)) for flavour, key in ACCURACY.values()]
        cells += [_number(cost[key] * scale) if key in cost else "" for key, scale in COST.values()]
        table.add_row(row.replace("_", "-"), *cells)
    return table


def task_tables(record: dict[str, Any]) -> list[Table]:
    """One table per task: its first metric with the interval, the others, and the cost."""
    found = []
    for name, task in record["tasks"].items():
        title = f"{name}: {task['n_items']} items in {task['n_clusters']} clusters"
        metrics = [task["primary"], *task["shown"]]
        table = Table("row", title=title, box=box.SIMPLE_HEAD, padding=0)
        for column in [*(m.replace("/", "\n").replace("_", " ") for m in metrics), "FLOPs\nratio"]:
            table.add_column(column, justify="right")
        for row, scores in task["rows"].items():
            estimates = [scores.get(m.split("/")[0], {}).get(m.split("/")[1], {}) for m in metrics]
            cells = [_number(e.get("value")) for e in estimates]
            if estimates[0].get("low") is not None:
                cells[0] += f" [{_number(estimates[0]['low'])}, {_number(estimates[0]['high'])}]"
            table.add_row(row, *cells, _number(task["cost"].get(row, {}).get("flops_ratio")))
        found.append(table)
    return found


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


@contextmanager
def counting(what: str) -> Iterator[Callable[[str], None]]:
    """A line on stderr that counts calls and shows the last name; the total is not known beforehand."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.completed} " + what),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda name: bar.update(task, advance=1, description=_plain(name, 40))


def _plain(text: str, most: int) -> str:
    """Printable on any terminal, without markup."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return escape(text if len(text) <= most else f"{text[: most - 3]}...")


def check_tables(report: Any, title: str) -> Iterator[Table]:
    """What is there, then what is wrong."""
    facts = report.as_dict()
    table = Table("", *("count", "total", "min", "median", "mean", "max"), title=title, box=box.SIMPLE_HEAD)
    for name in ("seconds", "frames_per_conversation", "replies_per_conversation", "words_per_reply"):
        values = facts[name] or {}
        table.add_row(name.replace("_", " "), *(f"{v:,.5g}" if v < 1e5 else f"{v:,.0f}" for v in values.values()))
    table.add_section()
    table.add_row("files", f"{facts['files']:,}")
    table.add_row("conversations", f"{facts['conversations']:,}")
    table.add_row("videos or records", f"{facts['units']:,}")
    table.add_row("  with a fault", f"{facts['failed']:,}", f"{facts['share_failed']:.2%}")
    yield table
    if facts["classes"]:
        table = Table("class", "conversations", box=box.SIMPLE_HEAD)
        for name, count in list(facts["classes"].items())[:MOST]:
            table.add_row(_plain(name, 60), str(count))
        if len(facts["classes"]) > MOST:
            table.add_row(f"and {len(facts['classes']) - MOST} more", "")
        yield table
    if facts["faults"]:
        table = Table("fault", "where and what", box=box.SIMPLE_HEAD)
        for fault in facts["faults"][:MOST]:
            table.add_row(fault["kind"], _plain(fault["message"], 400))
        for kind, count in facts["faults_by_kind"].items():
            table.add_row(kind, f"{count} in all", style="bold")
        yield table
