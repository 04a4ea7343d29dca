"""``vtskip train``: fine-tune a model."""

from typing import Annotated

import typer


def command(
    config: Annotated[str, typer.Argument(help="a YAML file, or the name of a shipped one (`vtskip config ls train`)")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. optim.steps=200")] = None,
    resume: Annotated[
        str,
        typer.Option("--resume", metavar="auto|never|PATH", help="go on from the newest checkpoint, or from this one"),
    ] = "never",
    nproc: Annotated[int, typer.Option("--nproc", min=1, help="processes on this machine, started by torchrun")] = 1,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="do the first step only; show what learns, what is taught, what it costs")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the summary as JSON, and nothing else")] = False,
) -> None:
    """Train a model, with a method's routers if the configuration names one; write it to the configuration's folder."""
    import json
    import sys
    from contextlib import redirect_stdout

    from rich.console import Console

    from vtskip._shipped import file_or_shipped
    from vtskip.config import load_config
    from vtskip.train import TrainConfig, run

    path = file_or_shipped(config, "train")
    settings = load_config(TrainConfig, path, overrides)
    scorer = None
    if settings.evaluation is not None:
        from vtskip.eval.training import scorer_of

        scorer = scorer_of(settings.evaluation, settings.out)
    if dry:
        from vtskip.cli.tables_dry_run import show
        from vtskip.train.dry_run import dry_run

        with redirect_stdout(sys.stderr):
            found = dry_run(settings, nproc, scorer=scorer)
        print(json.dumps(found, default=str)) if as_json else show(found)
        return
    if nproc > 1:
        from vtskip.train.launch import relaunch

        relaunch(nproc, [str(path), *(overrides or []), "--resume", resume, *(["--json"] if as_json else [])])
    with redirect_stdout(sys.stderr):  # libraries print to stdout, which is for the result alone
        summary = run(settings, resume=resume, scorer=scorer)
    if not summary["main_process"]:
        return
    if as_json:
        print(json.dumps(summary))
        return
    console = Console(highlight=False)
    broken = f"; {summary['broken']} could not be read (broken.jsonl)" if summary["broken"] else ""
    loss = "" if summary["loss"] is None else f", loss {summary['loss']:.3f}"
    scores = ", ".join(f"{key.removeprefix('eval_')} {value:.4g}" for key, value in summary.items() if "eval_" in key)
    console.print(
        f"{summary['out']}: {summary['steps']} steps in {summary['seconds']:.0f} s{loss}\n"
        f"{summary['trained_parameters'] / 1e6:.2f} M parameters trained on {summary['samples']} conversations{broken}"
        + (f"\nheld out: {scores}" if scores else "")
        + (f"\nbest: {summary['best']}" if summary["best"] else "")
        + ("; ended early: no better one within best.patience" if summary["ended_early"] else "")
    )
