"""``vtskip stream``: narrate a video as it plays."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[VIDEO] [KEY=VALUE]...", help="a file, or a folder of pictures; keys of the file"),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option("--config", help="a YAML file, or the name of a shipped one (`vtskip config ls stream`)"),
    ] = None,
    model: Annotated[Path | None, typer.Option("--model", help="checkpoint folder written by vtskip train")] = None,
    camera: Annotated[
        str | None, typer.Option("--camera", help="in place of a video: rtsp://... or a device; Ctrl-C ends it")
    ] = None,
    camera_format: Annotated[
        str | None, typer.Option("--camera-format", help="of a device: v4l2, avfoundation, dshow")
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="name or YAML file; the checkpoint's own method by default")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", help="speak if P(interval) is below it, 0 to 1; higher speaks more  [0.725]"),
    ] = None,
    query: Annotated[list[str] | None, typer.Option("--query", metavar="TEXT@SECONDS", help="ask; repeatable")] = None,
    system: Annotated[
        str | None, typer.Option("--system", help="opening text; the checkpoint's own by default")
    ] = None,
    instruction: Annotated[
        str | None, typer.Option("--instruction", help="what to narrate; the checkpoint's own by default")
    ] = None,
    max_frames: Annotated[int | None, typer.Option("--max-frames", min=1, help="stop after this many frames")] = None,
    max_new_tokens: Annotated[int | None, typer.Option("--max-new-tokens", min=1, help="longest reply  [100]")] = None,
    window: Annotated[
        int | None,
        typer.Option("--window", min=1, help="rows of history that are kept; all the model has positions for"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="print one JSON object (events and cost) at the end, and nothing else")
    ] = False,
    vtt: Annotated[Path | None, typer.Option("--vtt", help="write the replies as WebVTT subtitles")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="write the JSON object to this file")] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="PNG of frames, and of how many layers keep what of them")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N  [auto]")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="auto, float32, bfloat16, float16  [auto]")] = None,
) -> None:
    """Feed a stream frame by frame at the model's rate; print timed replies as they come, then what they cost."""
    options = dict(locals())
    from functools import partial

    from rich.console import Console

    from vtskip.cli.tables import cost_table, reply
    from vtskip.data.live import check_source, frames_of
    from vtskip.streaming.config import stream_config
    from vtskip.streaming.run import run

    for name in ("arguments", "config", "as_json"):
        del options[name]
    settings = stream_config(config, arguments or [], options)
    check_source(settings.video, settings.camera)
    console, errors = Console(quiet=as_json, highlight=False, markup=False), Console(stderr=True, highlight=False)
    played = run(
        settings,
        partial(frames_of, settings.video, settings.camera, settings.camera_format),
        lambda event: console.print(reply(event)),
        lambda text: errors.print(f"note: {text}"),
    )
    if as_json:
        print(played.text(), end="")
    console.print(cost_table(played.session.cost(), played.checkpoint.template.frame_tokens))
