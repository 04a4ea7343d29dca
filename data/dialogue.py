"""How a video with timed texts becomes one or more conversations; the same for every source of texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vtskip.config import StrictModel
from vtskip.data.timeline import Narration, narration_turns, text_marks, windows
from vtskip.data.types import Sample
from vtskip.data.video import VideoInfo, model_frames, source_index

SYSTEM = (
    "A multimodal assistant helps its user with daily activities and sees frames of the user's view between the turns."
)
INSTRUCTION = (
    "Please narrate the video briefly in real time. Call the wearer of the camera C, and other people by other letters."
)


class Dialogue(StrictModel):
    """Wording and extent of the conversations.

    ``max_frames``: longer videos are cut into several samples. ``lead_in``: start at the video's first frame and not, like
    the reference, at the first text. ``tail``: go on to the video's end, where silence is to be learned.
    """

    system: str = SYSTEM
    instruction: str = INSTRUCTION
    max_frames: int | None = None
    lead_in: bool = False
    tail: bool = False


def narration_samples(
    uid: str,
    info: VideoInfo,
    fps: float,
    texts: Sequence[Narration],
    dialogue: Dialogue,
    source: Path,
    meta: dict[str, Any],
) -> list[Sample]:
    """Conversations over one video; ``texts`` in order of time, ``fps`` model frames per second."""
    total = model_frames(info, fps)
    marks = text_marks(texts, total, fps)
    parts = windows(marks, total, dialogue.max_frames, dialogue.lead_in, dialogue.tail)
    return [
        Sample(
            uid=uid if len(parts) == 1 else f"{uid}#{number}",
            video=info.path,
            fps=fps,
            frames=[source_index(info, k, fps) for k in range(part.first, part.last + 1)],
            conversation=narration_turns(part, dialogue.system, dialogue.instruction),
            source=str(source),
            meta={**meta, "duration": info.duration, "first_frame": part.first},
        )
        for number, part in enumerate(parts)
    ]
