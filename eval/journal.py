"""Finished samples on disk while a run is under way, so that one that was killed goes on where it stopped.

Every process appends to a file of its own, ``samples.partial.RANK.jsonl``; its first line says which run it is of. Files of
another run (other settings, model, samples or version) are thrown away, and so is a line that was cut off.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import vtskip

Key = tuple[str, str, str]  # row, task, uid
_NAME = "samples.partial.{}.jsonl"


class Journal:
    """The samples that are done. ``folder`` None remembers them in this process only."""

    def __init__(self, folder: Path | None, run: str, rank: int = 0):
        self.done: dict[Key, dict[str, Any]] = {}
        self.path = None if folder is None else folder / _NAME.format(rank)
        self.run, self.folder = run, folder
        self._file: Any = None

    def load(self) -> None:
        """Take over what any process of this run has finished."""
        for path in self._files():
            for line in _lines(path, self.run):
                self.done[key_of(line)] = line

    def add(self, lines: Sequence[dict[str, Any]]) -> None:
        """Samples that were finished together, on disk before this returns and never in part: they share their cost."""
        self.done |= {key_of(line): line for line in lines}
        if self.path is None:
            return
        if self._file is None:
            self._start(self.path)
        self._file.write("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
        self._file.flush()

    def _start(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = _lines(path, self.run) if path.exists() else []
        text = "".join(json.dumps(line) + "\n" for line in [{"run": self.run}, *kept])
        part = path.with_suffix(".tmp")
        part.write_text(text, encoding="utf-8")  # without what was cut off, and without another run's samples
        os.replace(part, path)
        self._file = path.open("a", encoding="utf-8")

    def close(self, remove: bool = False) -> None:
        """``remove``: the run is complete and its record written."""
        if self._file is not None:
            self._file.close()
            self._file = None
        for path in self._files() if remove else ():
            path.unlink()

    def _files(self) -> list[Path]:
        return [] if self.folder is None else sorted(self.folder.glob(_NAME.format("*")))


def key_of(line: Mapping[str, Any]) -> Key:
    return line["row"], line["task"], line["uid"]


def _lines(path: Path, run: str) -> list[dict[str, Any]]:
    """The samples in a file of this run; none where it is another's."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]  # the rest was cut off
    found = []
    for text in lines:
        try:
            found.append(json.loads(text))
        except ValueError:  # written while the disk was full, or the power went
            break
    return found[1:] if found and found[0] == {"run": run} else []


def fingerprint(settings: Mapping[str, Any], models: Sequence[str | Path], samples: Iterable[Any]) -> str:
    """What makes two starts the same run: settings, the files of the models, the samples, the version."""
    folders = [Path(model) for model in models]
    files = [
        sorted(p for p in f.iterdir() if p.suffix in (".json", ".safetensors")) if f.is_dir() else [] for f in folders
    ]
    facts = [
        vtskip.__version__,
        settings,
        [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for held in files for p in held],
        [(s.uid, str(s.video), s.frames, s.conversation) for s in samples],
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
