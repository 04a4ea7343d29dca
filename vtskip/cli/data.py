"""``vtskip data``: data sets."""

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False)
Config = Annotated[
    str, typer.Argument(metavar="NAME|CONFIG", help="a name in configs/data/, or a YAML file with a data section")
]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value, e.g. root=/data/coin, or data.split=val")]
AsJson = Annotated[bool, typer.Option("--json", help="print a JSON summary, and nothing else")]


@app.callback()
def _group() -> None:
    """Make, check and encode data sets."""


@app.command()
def make(
    what: Annotated[str, typer.Argument(metavar="KIND", help="synthetic: clips with annotations in every format")],
    out: Annotated[Path, typer.Option("--out", help="folder to write; finished clips in it are kept")],
    tier: Annotated[str, typer.Option("--tier", help="smoke (12 clips), small or tasks (120), full (800)")] = "smoke",
    seed: Annotated[int, typer.Option("--seed", help="the same seed gives the same pictures and texts")] = 0,
    level: Annotated[
        str, typer.Option("--level", help="what changes between frames although nothing happens: L0 (nothing) to L4")
    ] = "L1",
    holdout: Annotated[
        str | None,
        typer.Option("--holdout", help="keep for the test split: pairs, orders, looks or backgrounds"),
    ] = None,
    grammar: Annotated[
        str | None,
        typer.Option("--grammar", help="table (one task, any order) or tasks (12 tasks); by default the tier's own"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="processes, by default one per core; changes no clip")
    ] = None,
    damage: Annotated[
        float | None, typer.Option("--damage", help="break this share of the videos, to see what a run makes of it")
    ] = None,
    odd: Annotated[
        bool,
        typer.Option("--odd", help="also write odd/: files that a reader has to survive, readable and broken ones"),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Generate a data set of real video files with annotations in the formats of the public sets."""
    import json

    from vtskip.data.synthetic import make as make_synthetic
    from vtskip.data.synthetic.damage import BROKEN, damage_set, write_odd
    from vtskip.errors import ConfigError, nearest

    if what != "synthetic":
        raise ConfigError(f"unknown data set {what!r}{nearest(what, ['synthetic'])}; accepted: synthetic")
    folder = make_synthetic(tier, out, seed, workers=workers, level=level, holdout=holdout, grammar=grammar)
    broken = {} if damage is None else damage_set(folder, damage, seed)
    extra = write_odd(folder / "odd", seed) if odd else {}
    splits = json.loads((folder / "splits.json").read_text(encoding="utf-8"))
    counts = {name: len(uids) for name, uids in splits.items()}
    if as_json:
        told: dict[str, Any] = {"damaged": broken} if broken else {}
        told |= {"odd": {kind: str(path) for kind, path in extra.items()}} if extra else {}
        print(json.dumps({"out": str(folder), "tier": tier, "seed": seed, "clips": counts} | told))
        return
    clips = sum(counts[name] for name in ("train", "val", "test"))  # other lists are parts of these
    print(f"{folder}: {clips} clips ({', '.join(f'{n} {name}' for name, n in counts.items())})")
    for name, kind in broken.items():
        print(f"  {name}: {kind}")
    for kind, path in extra.items():
        print(f"  {path.relative_to(folder)}: {'broken' if kind in BROKEN else 'readable'}")


@app.command()
def check(
    config: Config,
    overrides: Overrides = None,
    max_failures: Annotated[
        float, typer.Option("--max-failures", min=0, max=1, help="exit with 1 where a larger share has a fault")
    ] = 0.0,
    all_frames: Annotated[
        bool, typer.Option("--all-frames", help="decode every frame that is used, not three")
    ] = False,
    picture: Annotated[Path | None, typer.Option("--picture", help="write a PNG here")] = None,
    as_json: AsJson = False,
) -> None:
    """Open every annotation and every video, and say what is wrong and what is there."""
    import json

    from rich.console import Console

    from vtskip._files import write_atomic
    from vtskip.cli.tables import check_tables, counting
    from vtskip.data.check import check as check_section
    from vtskip.data.picture import picture as draw
    from vtskip.data.sections import data_sections

    sections = data_sections(config, overrides or [])
    titles = {name: config if len(sections) == 1 else f"{config}: {name}" for name in sections}
    with counting("checked") as progress:
        reports = {name: check_section(section, all_frames, progress) for name, section in sections.items()}
    for name, report in reports.items():
        if picture is not None:
            first = name == next(iter(reports))
            place = picture if first else picture.with_stem(f"{picture.stem}_{name}")
            write_atomic(place, draw(report, titles[name]))
    if as_json:
        print(json.dumps({name: report.as_dict() for name, report in reports.items()}))
    else:
        console = Console(highlight=False)
        for name, report in reports.items():
            for table in check_tables(report, titles[name]):
                console.print(table)
    if any(report.share > max_failures for report in reports.values()):
        raise typer.Exit(1)


@app.command()
def features(
    config: Config,
    model: Annotated[str, typer.Option("--model", help="a checkpoint with the vision tower that training will have")],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="folder of the cache; by default the configuration's")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="frames that go through the tower at once")] = 64,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="to store in: float32 (default), bfloat16, float16")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Write the vision tower's features of every video, for training with `features: DIR`.

    What is there is kept; several processes may run at once and share the work.
    """
    import json

    from vtskip.cli.tables import counting
    from vtskip.train.features import fill_sections

    with counting("encoded") as progress:
        result = fill_sections(config, overrides or [], model, out, batch, dtype, device, progress)
    if as_json:
        print(json.dumps(result))
        return
    print(
        f"{result['folder']}: {result['made']} videos encoded, {result['kept']} were there, {result['failed']} failed"
    )
    for fault in result["faults"]:
        print(f"  {fault}")
