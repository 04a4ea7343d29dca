"""A cache of vision-tower features on disk, so that training need not decode and encode videos in every epoch.

As in VideoLLM-online (arXiv 2406.11816), but keyed by what the features depend on: the bytes of the video, the encoder and its
weights, frame size, frames per second and the token layout. A folder holds one folder per encoder setting and in it one
safetensors file per video, written all or nothing: a run that was stopped goes on, and several processes share the work.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtskip._files import replacing
from vtskip.config import StrictModel, parse
from vtskip.data.files import read_json, write_json
from vtskip.data.still import STILLS
from vtskip.data.video import probe, read_frames, sampled, stream_frames
from vtskip.errors import ConfigError, DataError

BATCH = 64  # frames that are decoded and encoded at once
WAIT = 0.5  # seconds between looks at videos that other processes are working on
Encode = Callable[[np.ndarray], Tensor]  # uint8 [N, S, S, 3] -> features [N, F, D]
Done = Callable[[Path, str, DataError | None], None]  # video, "made", "kept" or "failed", and why


class FeatureSpec(StrictModel):
    """What features depend on beside the video.

    Attributes:
        encoder: its name or configuration. fingerprint: a hash of its weights and its normalisation of pixels.
        size: side of a frame in pixels. layout: of a frame's tokens, such as ``1+3x3``. tokens, width: F and D.
    """

    encoder: str
    fingerprint: str
    size: int
    fps: float
    layout: str
    tokens: int
    width: int

    @property
    def name(self) -> str:
        """The name of its folder; readable, and different for every difference."""
        text = json.dumps(self.model_dump(), sort_keys=True)
        return f"{self.fps:g}fps_{self.size}_{self.layout}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"


class FeatureCache:
    """The features of one encoder setting in ``folder``.

    ``fill`` makes them, ``read`` gives those of some frames. It knows no model: what encodes is passed in.
    """

    def __init__(self, folder: str | Path, spec: FeatureSpec, dtype: torch.dtype | None = None) -> None:
        """dtype: to store in (None: as they come, or as the folder has them)."""
        self.folder, self.spec = Path(folder), spec
        self.root, self.dtype = self.folder / spec.name, dtype
        self._digests: dict[tuple[Path, int, int], str] = {}

    # -- reading ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises DataError, with what is there instead, where the folder has no features of this setting."""
        if (self.root / "spec.json").is_file():
            return
        held = sorted(self.folder.glob("*/spec.json"))
        present = "; ".join(f"{path.parent.name} ({self._difference(path)})" for path in held) or "none"
        raise DataError(
            f"{self.folder}: no features {self.spec.name} of this encoder; present: {present}; "
            "make them with: vtskip data features CONFIG --model CHECKPOINT"
        )

    def _difference(self, path: Path) -> str:
        own, other = self.spec.model_dump(), read_spec(path)[0].model_dump()
        return ", ".join(f"another {key}" for key in own if own[key] != other[key])

    def read(self, video: Path, indices: Sequence[int]) -> Tensor:
        """Features [n, F, D] of source frames. Raises DataError for a video or frames that are not in the cache."""
        from safetensors import SafetensorError, safe_open

        path = self.path_of(video)
        try:
            with safe_open(path, framework="pt") as file:
                frames = file.get_tensor("frames").numpy()
                rows = np.searchsorted(frames, np.asarray(indices)).clip(max=len(frames) - 1)
                wrong = np.flatnonzero(frames[rows] != np.asarray(indices))
                if len(wrong):
                    raise DataError(
                        f"{path}: no features of frame {indices[int(wrong[0])]} of {video}; they are at {self.spec.fps:g} fps"
                    )
                first, last = int(rows.min()), int(rows.max())
                return file.get_slice("features")[first : last + 1][torch.from_numpy(rows - first)]
        except FileNotFoundError:
            raise DataError(f"{video}: no features in {self.root}; make them with: vtskip data features") from None
        except (SafetensorError, OSError) as e:
            raise DataError(f"{path}: damaged ({e}); remove it and make it again") from None

    def empty(self) -> Tensor:
        """Features of no frames, [0, F, D]."""
        return torch.zeros(0, self.spec.tokens, self.spec.width)

    def path_of(self, video: Path) -> Path:
        """Where the features of a video are, by the video's bytes."""
        digest = self.digest(video)
        return self.root / digest[:2] / f"{digest}.safetensors"

    def digest(self, video: Path) -> str:
        """sha256 of the file, remembered in the folder until size or time of change differ: videos are large."""
        probe(video)  # an unreadable one is a VideoError
        stat = video.stat()
        key = (video, stat.st_size, stat.st_mtime_ns)
        if key not in self._digests:
            self._digests[key] = self._remembered(video, stat.st_size, stat.st_mtime_ns)
        return self._digests[key]

    def _remembered(self, video: Path, size: int, changed: int) -> str:
        place = hashlib.sha256(str(video.resolve()).encode()).hexdigest()[:32]
        note = self.folder / "hashes" / f"{place}.json"
        facts = {"video": str(video.resolve()), "size": size, "mtime_ns": changed}
        if note.is_file():
            with suppress(DataError, AttributeError, KeyError):  # a damaged note is written anew below
                held = read_json(note)
                if facts.items() <= held.items():
                    return str(held["sha256"])
        with video.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        with suppress(OSError):  # a folder that cannot be written to is still good to read from
            write_json(note, facts | {"sha256": digest})
        return digest

    # -- making ----------------------------------------------------------------------------------------------------

    def fill(self, videos: Iterable[Path], encode: Encode, done: Done, batch: int = BATCH) -> None:
        """Make what is missing. ``done`` is called once per video; it may raise to stop at a fault.

        What another process is working on is left to it and looked at again at the end.
        """
        self._begin()
        waiting = list(dict.fromkeys(videos))
        while waiting:
            busy = []
            for video in waiting:
                try:
                    result = self._one(video, encode, batch)
                except DataError as e:
                    done(video, "failed", e)
                    continue
                if result is None:
                    busy.append(video)
                else:
                    done(video, result, None)
            if busy and len(busy) == len(waiting):
                time.sleep(WAIT)
            waiting = busy

    def _begin(self) -> None:
        """Write what the folder holds, or check that it is that."""
        path = self.root / "spec.json"
        if path.is_file():
            held = read_spec(path)[1]
            if self.dtype is not None and str(self.dtype) != f"torch.{held}":
                raise ConfigError(f"{self.root}: holds features in {held}, not {self.dtype}; choose another folder")
            self.dtype = getattr(torch, held)
        else:
            self.dtype = self.dtype or torch.float32
            write_json(path, {"spec": self.spec.model_dump(), "dtype": str(self.dtype).removeprefix("torch.")})

    def _one(self, video: Path, encode: Encode, batch: int) -> str | None:
        """``made`` or ``kept``; None where another process is at it."""
        path = self.path_of(video)
        if path.is_file():
            return "kept"
        with self._claim(self.digest(video)) as mine:
            if not mine:
                return None
            if path.is_file():  # finished between the look and the claim
                return "kept"
            if find_spec("fcntl") is not None:  # what a killed process left of this video: no one else may be at it
                for part in path.parent.glob(f".{path.name}.*.part"):
                    part.unlink(missing_ok=True)
            self._make(video, path, encode, batch)
            return "made"

    def _make(self, video: Path, path: Path, encode: Encode, batch: int) -> None:
        from safetensors.torch import save_file

        frames = sampled(probe(video), self.spec.fps)
        parts = [encode(images).to("cpu", self.dtype) for images in self._batches(video, batch)]
        features = torch.cat(parts)
        expected = (len(frames), self.spec.tokens, self.spec.width)
        if tuple(features.shape) != expected:
            raise DataError(f"{video}: features of shape {list(features.shape)}, expected {list(expected)}")
        with replacing(path) as part:
            tensors = {"features": features.contiguous(), "frames": torch.tensor(frames)}
            save_file(tensors, part, {"video": video.name, "spec": self.spec.name})

    def _batches(self, video: Path, batch: int) -> Iterator[np.ndarray]:
        """The frames that a model can be shown, decoded once and in order."""
        if video.suffix.lower() in STILLS:
            yield read_frames(video, [0], self.spec.size)
            return
        images: list[np.ndarray] = []
        last = -1
        for _, index, image in stream_frames(video, self.spec.fps, self.spec.size):
            if index == last:  # sampled faster than the video
                continue
            images, last = [*images, image], index
            if len(images) == batch:
                yield np.stack(images)
                images = []
        if images:
            yield np.stack(images)

    @contextmanager
    def _claim(self, digest: str) -> Iterator[bool]:
        """Whether this process may make a video's features. A claim ends with its process, however that ends.

        One byte of one file per video is locked. Where there are no such locks, work may be done twice, but never wrongly.
        """
        try:
            import fcntl
        except ImportError:
            yield True
            return
        place = int(digest[:15], 16)
        with (self.root / ".claims").open("ab") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            except OSError:
                yield False
                return
            yield True


def read_spec(path: Path) -> tuple[FeatureSpec, str]:
    """(setting, name of the stored type) of a folder. Raises DataError or ConfigError naming the file."""
    value: Any = read_json(path)
    dtypes = ("float32", "float16", "bfloat16", "float64")
    if not isinstance(value, dict) or value.get("dtype") not in dtypes:
        raise DataError(f"{path}: expected 'spec' and 'dtype' ({', '.join(dtypes)})")
    return parse(FeatureSpec, value.get("spec"), str(path)), value["dtype"]
