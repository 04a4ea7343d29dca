"""``vtskip stream``: narrate a video as it plays."""

from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    clip: Annotated[Path, typer.Argument(help="a video file")],
    model: Annotated[Path, typer.Option("--model", help="checkpoint folder written by vtskip train")],
    method: Annotated[
        str | None, typer.Option("--method", help="name or YAML file; the checkpoint's own method by default")
    ] = None,
    threshold: Annotated[
        float, typer.Option("--threshold", help="speak if P(interval) is below it, 0 to 1; higher speaks more")
    ] = 0.725,
    query: Annotated[list[str] | None, typer.Option("--query", metavar="TEXT@SECONDS", help="ask; repeatable")] = None,
    system: Annotated[
        str | None, typer.Option("--system", help="opening text; the checkpoint's own by default")
    ] = None,
    instruction: Annotated[
        str | None, typer.Option("--instruction", help="what to narrate; the checkpoint's own by default")
    ] = None,
    max_frames: Annotated[int | None, typer.Option("--max-frames", min=1, help="stop after this many frames")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="longest reply")] = 100,
    window: Annotated[
        int | None,
        typer.Option("--window", min=1, help="rows of history that are kept; all the model has positions for"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="print one JSON object (events and cost) at the end, and nothing else")
    ] = False,
    vtt: Annotated[Path | None, typer.Option("--vtt", help="write the replies as WebVTT subtitles")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="write the JSON object to this file")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16, float16")] = "auto",
) -> None:
    """Feed a clip frame by frame at the model's rate; print timed replies as they come, then what they cost."""
    from itertools import islice

    from rich.console import Console

    from vtskip.cli.tables import cost_table, stamp
    from vtskip.data.video import probe, stream_frames
    from vtskip.methods import get_method
    from vtskip.streaming.loading import load_stream
    from vtskip.streaming.policy import check_threshold
    from vtskip.streaming.session import StreamSession, parse_question, play
    from vtskip.streaming.vtt import to_vtt, write_text

    check_threshold(threshold)
    questions = [parse_question(text) for text in query or []]
    chosen = None if method is None else get_method(method)
    probe(clip)
    checkpoint = load_stream(model, device, dtype)
    console = Console(quiet=as_json, highlight=False, markup=False)
    if chosen is not None and not checkpoint.use(chosen):
        Console(stderr=True).print(f"note: {model} holds no trained parameters for method {method!r}", highlight=False)
    config = checkpoint.model.config
    session = StreamSession(
        checkpoint.model,
        checkpoint.template,
        threshold=threshold,
        max_new_tokens=max_new_tokens,
        window=window,
        system=config.system_prompt or None if system is None else system,
        instruction=config.instruction if instruction is None else instruction,
    )
    frames = ((time, frame) for time, _, frame in stream_frames(clip, config.fps, config.image_size))
    events = []
    for event in play(session, islice(frames, max_frames), questions):
        events.append(event)
        asked = f"{event.query} " if event.query else ""
        console.print(f"[{stamp(event.time)}] {asked}{event.text}")
    text = as_text(clip, model, checkpoint, events, session)
    if vtt is not None:
        write_text(vtt, to_vtt(events))
    if out is not None:
        write_text(out, text)
    if as_json:
        print(text, end="")
    console.print(cost_table(session.cost(), checkpoint.template.frame_tokens))


def as_text(clip: Path, model: Path, checkpoint: Any, events: list[Any], session: Any) -> str:
    """The JSON object of a session: what ran, what was said and what it cost."""
    import json
    from dataclasses import asdict

    record = {
        "clip": str(clip),
        "model": str(model),
        "method": checkpoint.method.model_dump(mode="json"),
        "fps": checkpoint.model.config.fps,
        "threshold": session.threshold,
        "window": session.window,
        "events": [asdict(e) for e in events],
        "cost": session.cost(),
    }
    return json.dumps(record, indent=1, allow_nan=False) + "\n"
