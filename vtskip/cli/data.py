"""``vtskip data``: data sets."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def _group() -> None:
    """Make a data set to train and evaluate on."""


@app.command()
def make(
    what: Annotated[str, typer.Argument(metavar="KIND", help="synthetic: clips with COIN and Ego4D annotations")],
    out: Annotated[Path, typer.Option("--out", help="folder to write; finished clips in it are kept")],
    tier: Annotated[str, typer.Option("--tier", help="smoke (12 clips) or small (120 clips)")] = "smoke",
    seed: Annotated[int, typer.Option("--seed", help="the same seed gives the same pictures and texts")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON summary, and nothing else")] = False,
) -> None:
    """Generate a data set of real video files with annotations in the formats of the public sets."""
    import json

    from vtskip.data.synthetic import make as make_synthetic
    from vtskip.errors import ConfigError, nearest

    if what != "synthetic":
        raise ConfigError(f"unknown data set {what!r}{nearest(what, ['synthetic'])}; accepted: synthetic")
    folder = make_synthetic(tier, out, seed)
    splits = json.loads((folder / "splits.json").read_text(encoding="utf-8"))
    counts = {name: len(uids) for name, uids in splits.items()}
    if as_json:
        print(json.dumps({"out": str(folder), "tier": tier, "seed": seed, "clips": counts}))
        return
    print(f"{folder}: {sum(counts.values())} clips ({', '.join(f'{n} {name}' for name, n in counts.items())})")
