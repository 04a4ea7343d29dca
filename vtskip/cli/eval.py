"""``vtskip eval``: accuracy beside cost on held-out clips."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    config: Annotated[Path, typer.Argument(help="a file of configs/eval/")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. model=runs/mine")] = None,
    on_error: Annotated[
        str | None, typer.Option(help="skip: leave out clips that cannot be read and name them; stop: end there")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the record as JSON, and nothing else")] = False,
    lmms_eval: Annotated[
        Path | None, typer.Option(help="run nothing; write the tasks into this folder, for lmms-eval's --include_path")
    ] = None,
) -> None:
    """Score a model on held-out conversations, against blind and at equal counts; write one record."""
    import json

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    from vtskip.cli.tables import eval_table, task_tables, verdict
    from vtskip.config import load_config
    from vtskip.eval.config import EvalConfig
    from vtskip.eval.runner import run

    chosen = [] if on_error is None else [f"on_error={on_error}"]
    settings = load_config(EvalConfig, config, [*(overrides or []), *chosen])
    if lmms_eval is not None:
        from vtskip.eval.lmms_tasks import export

        print("\n".join(export(settings, lmms_eval)))
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[str, TaskID] = {}

        def progress(row: str, done: int, total: int) -> None:
            if row not in tasks:
                tasks[row] = bar.add_task(row, total=total)
            bar.update(tasks[row], completed=done)

        record = run(settings, progress)
    if not record:  # one of several processes, not the one that writes
        return
    if as_json:
        print(json.dumps(record, indent=1, allow_nan=False))
        return
    console = Console()
    if "accuracy" in record:
        console.print(eval_table(record))
        console.print(verdict(record), highlight=False)
    else:
        for table in task_tables(record):
            console.print(table)
    for fault in record["skipped"]:
        console.print(f"skipped {fault['name']}: {fault['fault']}", highlight=False, markup=False)
    if settings.out is not None:
        console.print(f"record: {Path(settings.out) / 'record.json'}", highlight=False, soft_wrap=True)
