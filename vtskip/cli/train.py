"""``vtskip train``: fine-tune a streaming model."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    config: Annotated[Path, typer.Argument(help="a file of configs/train/")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. optim.steps=200")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on from the newest checkpoint in the run's folder")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the summary as JSON, and nothing else")] = False,
) -> None:
    """Train a model, with a method's routers if the configuration names one; write it to the configuration's folder."""
    import json
    import sys
    from contextlib import redirect_stdout

    from rich.console import Console

    from vtskip.config import load_config
    from vtskip.train import TrainConfig, run

    settings = load_config(TrainConfig, config, overrides)
    with redirect_stdout(sys.stderr):  # libraries print to stdout, which is for the result alone
        summary = run(settings, resume=resume)
    if not summary["main_process"]:
        return
    if as_json:
        print(json.dumps(summary))
        return
    console = Console(highlight=False)
    loss = "" if summary["loss"] is None else f", loss {summary['loss']:.3f}"
    console.print(
        f"{summary['out']}: {summary['steps']} steps in {summary['seconds']:.0f} s{loss}\n"
        f"{summary['trained_parameters'] / 1e6:.2f} M parameters trained on {summary['samples']} conversations"
    )
