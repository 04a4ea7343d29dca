"""Tables and the progress line of ``vtskip data``."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

MOST = 20  # rows of a list


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
