"""``vtskip export``: the model of a run in one folder."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    run: Annotated[Path, typer.Argument(help="a run's folder, or a checkpoint in it")],
    out: Annotated[Path, typer.Argument(help="a new folder")],
    zero: Annotated[
        bool,
        typer.Option("--zero", help="from DeepSpeed's fp32 shards (pickled: own runs only), not from 16-bit weights"),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print a summary as JSON, and nothing else")] = False,
) -> None:
    """Write a run's model as safetensors, with LoRA merged and shards joined; `vtskip.load_pretrained` reads it."""
    import json
    import sys
    from contextlib import redirect_stdout

    from vtskip.train.export import export

    with redirect_stdout(sys.stderr):
        summary = export(run, out, zero)
    if as_json:
        print(json.dumps(summary))
        return
    method = f", method {summary['method']}" if summary["method"] else ""
    print(
        f"{summary['out']}: {summary['model']}{method}, {summary['parameters'] / 1e6:,.2f} M parameters, from {summary['from']}"
    )
