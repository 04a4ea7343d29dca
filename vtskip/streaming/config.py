"""The configuration of a stream: what ``vtskip stream`` is told, by a file, by its options, or by both."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from vtskip._shipped import file_or_shipped
from vtskip.config import StrictModel, apply_overrides, parse, read_yaml
from vtskip.errors import ConfigError
from vtskip.methods import MethodSpec
from vtskip.streaming.policy import check_threshold
from vtskip.streaming.session import parse_question

Count = Annotated[int, Field(ge=1)]


class StreamConfig(StrictModel):
    """One stream.

    Attributes:
        model: checkpoint folder of ``vtskip train``.
        video: a file, or a folder of pictures, shown in the order of their names. camera: in its place, the URL of a network
            stream (``rtsp://...``) or a device, with ``camera_format`` (``v4l2``, ``avfoundation``, ``dshow``) where PyAV
            needs one.
        method: in place of the checkpoint's own.
        threshold: speak if P(interval) is below it; higher speaks more. query: questions, as TEXT@SECONDS.
        system, instruction: opening text and what to narrate; the checkpoint's own by default.
        max_frames: stop after so many; None plays to the end. max_new_tokens: longest reply.
        window: rows of history that are kept; None is all that the model has positions for.
        vtt, out: files for the replies as WebVTT subtitles, and for everything as JSON. picture: PNG of frames at equal
            distances and of how many layers keep what of them.
    """

    model: Path
    video: Path | None = None
    camera: str | None = None
    camera_format: str | None = None
    method: MethodSpec | None = None
    threshold: float = 0.725
    query: list[str] = []
    system: str | None = None
    instruction: str | None = None
    max_frames: Count | None = None
    max_new_tokens: Count = 100
    window: Count | None = None
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    vtt: Path | None = None
    out: Path | None = None
    picture: Path | None = None

    @field_validator("threshold")
    @classmethod
    def _is_a_probability(cls, value: float) -> float:
        return check_threshold(value)

    @field_validator("query")
    @classmethod
    def _are_timed(cls, value: list[str]) -> list[str]:
        for text in value:
            parse_question(text)
        return value


def stream_config(file: str | Path | None, arguments: list[str], options: dict[str, Any]) -> StreamConfig:
    """From a file (or the name of a shipped one), ``key=value`` among ``arguments``, and options; the later ones win.

    options: by key; None or an empty list is one that was not given.
    arguments: at most one of them is a video, whatever has no "=" in it or exists. Raises ConfigError.
    """
    path = None if file is None else file_or_shipped(file, "stream")
    values: dict[str, Any] = {} if path is None else read_yaml(path)
    videos = [text for text in arguments if "=" not in text or Path(text).exists()]
    if len(videos) > 1:
        raise ConfigError(f"videos {', '.join(videos)}: accepted is one")
    apply_overrides(values, [text for text in arguments if text not in videos], StreamConfig)
    given = {"video": videos[0]} if videos else {}
    values.update(given | {key: value for key, value in options.items() if value not in (None, [])})
    return parse(StreamConfig, values, "vtskip stream" if path is None else str(path))
