"""``vtskip report``: evaluations side by side."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    runs: Annotated[list[Path], typer.Argument(help="folders of `vtskip eval`, or their record.json")],
    against: Annotated[
        str | None, typer.Option(help="paired differences from this row (`dense`), of the same run or RUN/ROW")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="write all metrics to this CSV file")] = None,
    picture: Annotated[Path | None, typer.Option(help="write accuracy against cost to this PNG file")] = None,
    costs: Annotated[bool, typer.Option("--costs", help="also print everything that was counted and timed")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of Markdown")] = False,
) -> None:
    """Print Markdown tables of evaluations: metrics with intervals, paired differences, cost."""
    from vtskip._files import write_atomic
    from vtskip.eval.report import as_csv, load_run, markdown, table
    from vtskip.eval.report import as_json as json_text

    loaded = [load_run(path) for path in runs]
    entries = table(loaded, against)
    if csv is not None:
        write_atomic(csv, as_csv(entries).encode())
    if picture is not None:
        from vtskip.eval.picture import picture as draw

        write_atomic(picture, draw(entries))
    print(json_text(entries) if as_json else markdown(loaded, entries, against, costs), end="")
