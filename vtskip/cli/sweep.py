"""``vtskip sweep``: loss on text behind a vision prefix, against ``keep``."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    config: Annotated[Path, typer.Argument(help="a file of configs/sweep/")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. texts=4")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write the record to this file ('-': stdout)")
    ] = None,
) -> None:
    """Score a language model's text behind a vision prefix under each method: what skipping costs in loss."""
    from rich.console import Console

    from vtskip.cli.listing import write_record
    from vtskip.config import load_config
    from vtskip.eval.sweep import SweepConfig, markdown, run

    settings = load_config(SweepConfig, config, overrides)
    with Console(stderr=True).status("loading the model") as status:
        record = run(settings, progress=status.update)
    if write_record(record, json_file):
        return
    print(markdown(record))
    if tuned := record["router_tuning"]:
        print(f"{tuned['steps']} router-only steps: loss {tuned['loss_before']:.3f} -> {tuned['loss_after']:.3f}")
