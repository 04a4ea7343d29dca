"""``vtskip calibrate``: which layers of a checkpoint may skip."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    config: Annotated[Path, typer.Argument(help="a file of configs/calibrate/")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. prompts=20 choose.count=2")] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="go on from the scores in the folder, or discard them")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON, and nothing else")] = False,
) -> None:
    """Score every layer on prompts (ShortV's Layer Contribution, gamma-MoD's ARank); write a method for the lowest.

    Prompts come from the train split unless the configuration names another: test prompts leak into the choice of layers.
    """
    import json
    import sys
    from contextlib import redirect_stdout

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    from vtskip.calibrate.config import CalibrateConfig
    from vtskip.calibrate.run import METHOD, PICTURE, RESULT, run
    from vtskip.config import load_config

    settings = load_config(CalibrateConfig, config, overrides)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        Progress(*columns, console=Console(stderr=True)) as bar,
        redirect_stdout(sys.stderr),
    ):  # stdout is for the result alone
        tasks: list[TaskID] = []

        def progress(done: int, total: int) -> None:
            if not tasks:
                tasks.append(bar.add_task("prompts", total=total))
            bar.update(tasks[0], completed=done)

        result = run(settings, progress, resume)
    if as_json:
        print(json.dumps(result, indent=1, allow_nan=False))
        return
    chosen = ", ".join(map(str, result["layers"])) or "none"
    written = ", ".join((METHOD, RESULT, PICTURE))
    Console(highlight=False, markup=False, soft_wrap=True).print(
        f"layers that skip ({len(result['layers'])} of {len(result['mean'])}): {chosen}\n{settings.out}: {written}"
    )
