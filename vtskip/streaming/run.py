"""A stream from its configuration to its record. Where the frames come from is handed in: streaming knows no file format."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from vtskip.heatmap import HeatMap
from vtskip.methods import get_method
from vtskip.streaming.config import StreamConfig
from vtskip.streaming.loading import StreamCheckpoint, load_stream
from vtskip.streaming.session import Event, StreamSession, parse_question, play
from vtskip.streaming.vtt import to_vtt, write_file

Frames = Callable[[float, int], Iterable[tuple[float, Any]]]  # (fps, side) -> (seconds, uint8 [side, side, 3])
Tell = Callable[[Event], None]


@dataclass(frozen=True)
class Played:
    """A stream that has ended."""

    config: StreamConfig
    checkpoint: StreamCheckpoint
    session: StreamSession
    events: list[Event]

    def record(self) -> dict[str, Any]:
        """What ran, what was said and what it cost, ready for JSON."""
        return {
            "clip": str(self.config.video or self.config.camera),
            "model": str(self.config.model),
            "method": self.checkpoint.method.model_dump(mode="json"),
            "fps": self.checkpoint.model.config.fps,
            "threshold": self.session.threshold,
            "window": self.session.window,
            "events": [asdict(event) for event in self.events],
            "cost": self.session.cost(),
        }

    def text(self) -> str:
        return json.dumps(self.record(), indent=1, allow_nan=False) + "\n"


def run(config: StreamConfig, frames: Frames, tell: Tell, note: Callable[[str], None]) -> Played:
    """Play a stream to its end, or to Ctrl-C where it is a camera's; then write the files that are asked for.

    tell(event) is called at every reply, note(text) with what a user should know. Raises VtskipError.
    """
    method = None if config.method is None else get_method(config.method)
    questions = [parse_question(text) for text in config.query]
    checkpoint = load_stream(config.model, config.device, config.dtype)
    if method is not None and not checkpoint.use(method):
        note(f"{config.model} holds no trained parameters for method {method.name!r}")
    own = checkpoint.model.config
    heat = None if config.picture is None else HeatMap(checkpoint.handle, own)
    session = StreamSession(
        checkpoint.model,
        checkpoint.template,
        threshold=config.threshold,
        max_new_tokens=config.max_new_tokens,
        window=config.window,
        system=own.system_prompt or None if config.system is None else config.system,
        instruction=own.instruction if config.instruction is None else config.instruction,
        on_frame=None if heat is None else heat.note,
    )
    played = Played(config, checkpoint, session, [])
    try:
        for event in play(session, islice(frames(own.fps, own.image_size), config.max_frames), questions):
            played.events.append(event)
            tell(event)
    except KeyboardInterrupt:
        if config.camera is None:
            raise
    if config.vtt is not None:
        write_file(config.vtt, to_vtt(played.events))
    if config.out is not None:
        write_file(config.out, played.text())
    if config.picture is not None and heat is not None:
        write_file(config.picture, heat.png())
    return played
