"""``vtskip bench``: measured time beside modelled work."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. rounds=3")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="a file of configs/bench/")] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="frame-by-frame steps instead of prefill and training")
    ] = False,
    shape: Annotated[str | None, typer.Option(help="sizes of a published model, e.g. llava-1.5-7b")] = None,
    layers: Annotated[
        int | None, typer.Option(help="so many of its layers; all of them are extrapolated apart")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="few rounds: a look, not a measurement")] = False,
    record: Annotated[Path | None, typer.Option("--record", help="show this record; measure nothing")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write the record to this file ('-': stdout)")
    ] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="write its tables to this file")] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="draw time against FLOPs into this PNG file")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="throw away what a killed run of the same has left")] = False,
) -> None:
    """Time prefill, decode and training step of each method against dense, in interleaved rounds.

    With --json FILE finished rounds are kept beside it until the record is written, so that the same command goes on where
    it was killed.
    """
    from vtskip._files import write_atomic
    from vtskip.cli.listing import write_record
    from vtskip.eval.bench.tables import markdown as tables
    from vtskip.eval.bench.tables import roofline

    found = (
        _read(record)
        if record is not None
        else _measure(config, [*_options(shape, layers), *(overrides or [])], stream, quick, json_file, fresh)
    )
    text = tables(found) + ("" if found["kind"] == "bench_stream" else "\n\n" + roofline(found)) + "\n"
    if markdown is not None:
        write_atomic(markdown, text.encode())
    if picture is not None:
        from vtskip.eval.bench.picture import picture as draw

        write_atomic(picture, draw(found))
    if record is None and write_record(found, json_file):
        return
    print(text, end="")


def _options(shape: str | None, layers: int | None) -> list[str]:
    return [f"{key}={value}" for key, value in (("shape", shape), ("layers", layers)) if value is not None]


def _read(path: Path) -> dict:
    from vtskip.data.files import read_json
    from vtskip.errors import ConfigError

    found = read_json(path)
    kind = found.get("kind") if isinstance(found, dict) else None
    if kind not in ("bench", "bench_stream"):
        raise ConfigError(f"{path}: not the record of a bench (kind {kind!r})")
    return found


def _measure(
    config: Path | None, overrides: list[str], stream: bool, quick: bool, json_file: Path | None, fresh: bool
) -> dict:
    import shutil

    from rich.console import Console

    from vtskip.cli.listing import write_record
    from vtskip.eval.bench import load, run

    settings = load(config, overrides, "bench_stream" if stream else "bench")
    settings = settings.quick() if quick else settings
    kept = json_file is not None and str(json_file) != "-"
    journal = json_file.with_name(f".{json_file.name}.partial") if json_file is not None and kept else None
    if journal is not None and fresh:
        shutil.rmtree(journal, ignore_errors=True)
    with Console(stderr=True).status("starting") as status:
        found = run(settings, status.update, journal)
    if kept:
        write_record(found, json_file)
    if journal is not None:
        shutil.rmtree(journal, ignore_errors=True)
    return found
