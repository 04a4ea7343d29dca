"""What commands share: rows as a table for people or as JSON for programs, and records as files."""

from pathlib import Path
from typing import Any


def show(rows: list[dict[str, Any]], columns: dict[str, str], as_json: bool, title: str) -> None:
    """Print ``rows``: a list of objects as JSON, or a table of ``columns`` (key -> heading)."""
    if as_json:
        import json

        print(json.dumps(rows, indent=2))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for key, heading in columns.items():
        table.add_column(heading, no_wrap=key in ("name", "model_class"), overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row[key]) for key in columns))
    Console(highlight=False, markup=False).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{k}={_cell(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    return "" if value is None else str(value)


def write_record(record: dict[str, Any], file: Path | None) -> bool:
    """Write a record as JSON to ``file``, or to stdout for ``-``. True if that was all there is to print."""
    import json

    from vtskip._files import write_atomic

    text = json.dumps(record, indent=2) + "\n"
    if file is not None and str(file) == "-":
        print(text, end="")
        return True
    if file is not None:
        write_atomic(file, text.encode())  # makes the folder
    return False
