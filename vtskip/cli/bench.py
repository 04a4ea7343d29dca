"""``vtskip bench``: measured time beside modelled work."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    config: Annotated[Path, typer.Option("--config", help="a file of configs/bench/")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. rounds=3")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write the record to this file ('-': stdout)")
    ] = None,
) -> None:
    """Time prefill, decode and training step of each method against dense, in interleaved rounds."""
    from rich.console import Console
    from rich.table import Table

    from vtskip.cli.listing import write_record
    from vtskip.config import load_config
    from vtskip.eval.bench import BenchConfig, run

    settings = load_config(BenchConfig, config, overrides)
    console = Console(stderr=True)
    with console.status("building the model") as status:
        record = run(settings, progress=status.update)
    if write_record(record, json_file):
        return
    columns = ("flops", "prefill_time", "decode_time", "train_time", "kv", "peak_memory")
    table = Table(title=f"ratio to dense (noise of the prefill ratio: {record['noise']['prefill']:.3f})")
    table.add_column("method")
    for name in columns:
        table.add_column(name.replace("_", " "), justify="right")
    for row in record["methods"]:
        table.add_row(row["name"], *(f"{row[f'{name}_ratio']:.3f}" for name in columns))
    Console().print(table)
