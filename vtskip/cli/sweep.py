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
    import json

    from rich.console import Console

    from vtskip._files import write_atomic
    from vtskip.config import load_config
    from vtskip.eval.sweep import SweepConfig, markdown, run

    settings = load_config(SweepConfig, config, overrides)
    with Console(stderr=True).status("loading the model") as status:
        record = run(settings, progress=status.update)
    text = json.dumps(record, indent=2) + "\n"
    if json_file is not None and str(json_file) == "-":
        print(text, end="")
        return
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(json_file, text.encode())
    print(markdown(record))
    if tuned := record["router_tuning"]:
        print(f"{tuned['steps']} router-only steps: loss {tuned['loss_before']:.3f} -> {tuned['loss_after']:.3f}")
