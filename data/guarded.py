"""Training samples whose pictures may be damaged: each fault has the name of its file, also where a worker process dies of it.

A loader's worker reports an error as text with a traceback, and one that is killed (a fault in a decoder, too little memory)
reports nothing but its process number. ``Guarded`` reads a sample's pictures itself, notes what it is at, and either stops with
the file's name or lets another sample stand in and counts.
"""

import json
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from torch import Tensor
from torch.utils.data import Dataset

from vtskip.data.files import read_json, read_lines
from vtskip.data.types import Sample, Shown
from vtskip.errors import DataError

Broken = Literal["raise", "skip"]
_PIDS = re.compile(r"worker \(pid(?:\(s\))? ([\d, ]+)\)")


class Guarded(Dataset):
    """``samples`` with their pictures, as a map-style data set of ``Shown``.

    ``look`` reads what a sample shows (``StreamCollator.look``). ``broken``: ``raise`` stops at the first fault with the file's
    DataError; ``skip`` lets the next smaller sample that can be read stand in, by ``sizes`` (by default their frame counts), so
    that neither the number of steps nor a budget of tokens changes. The choice is a function of the index alone.

    ``log``: a file of JSON lines that faults are added to, by all workers and ranks; by default a temporary one. Raises
    DataError where no sample can stand in.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        look: Callable[[Sample], Tensor],
        broken: Broken = "raise",
        log: Path | None = None,
        sizes: Sequence[int] | None = None,
    ) -> None:
        self.samples, self.look, self.broken = samples, look, broken
        self._notes = Path(tempfile.mkdtemp(prefix="vtskip-loader-"))
        weakref.finalize(self, _remove, self._notes, os.getpid())
        self.log = log or self._notes / "broken.jsonl"
        sizes = sizes if sizes is not None else [len(sample.frames) for sample in samples]
        self._order = sorted(range(len(samples)), key=lambda i: (sizes[i], i))
        self._rank = {index: rank for rank, index in enumerate(self._order)}
        self._bad: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Shown:
        shown = self._read(index)
        if shown is None:
            rank = self._rank[index]
            others = (*self._order[:rank][::-1], *self._order[rank + 1 :])
            shown = next((found for i in others if (found := self._read(i)) is not None), None)
        if shown is None:
            raise DataError(f"none of {len(self)} samples can be read; the first fault: {self._bad[index]}")
        return shown

    def _read(self, index: int) -> Shown | None:
        """None where the sample has a fault and may be skipped."""
        if index in self._bad:
            return None
        sample = self.samples[index]
        note = self._note(os.getpid())
        note.write_text(json.dumps({"sample": sample.uid, "files": [str(path) for path, _ in sample.clips]}))
        try:
            return Shown(sample, self.look(sample))
        except DataError as e:
            self._tell(sample, str(e))
            if self.broken == "raise":
                raise
            self._bad[index] = str(e)
            return None
        finally:
            note.unlink(missing_ok=True)

    def _note(self, pid: int) -> Path:
        return self._notes / f"at-{pid}.json"

    def _tell(self, sample: Sample, message: str) -> None:
        """One write at the end of the file, so that processes do not write into each other's lines."""
        row = json.dumps({"sample": sample.uid, "video": str(sample.video), "message": message}) + "\n"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, row.encode())
        finally:
            os.close(handle)

    def faults(self) -> dict[str, str]:
        """Sample -> what is wrong with it, over all workers and ranks that share the log."""
        if not self.log.is_file():
            return {}
        rows = [json.loads(text) for _, text in read_lines(self.log)]
        return {row["sample"]: row["message"] for row in rows}

    @contextmanager
    def named(self) -> Iterator[None]:
        """Around the loop over a DataLoader of this data set: faults of its workers become DataErrors of one line.

        An error in a worker loses the traceback that the loader puts around it; a worker that died is told with the sample and
        the files that it was reading, if it was reading any.
        """
        try:
            yield
        except DataError as e:
            if not str(e).startswith("Caught "):
                raise
            last = str(e).strip().splitlines()[-1]
            raise DataError(last.partition(": ")[2] or last) from None
        except RuntimeError as e:
            told = _PIDS.search(str(e))
            pids = [int(pid) for pid in re.findall(r"\d+", told[1])] if told else []
            held = [read_json(self._note(pid)) for pid in pids if self._note(pid).is_file()]
            if not held:
                raise
            at = "; ".join(f"sample {row['sample']!r}, {', '.join(row['files']) or 'no file'}" for row in held)
            raise DataError(f"a loader process died while it was reading {at} ({str(e).splitlines()[0]})") from e


def _remove(folder: Path, owner: int) -> None:
    """Only the process that made it: a forked worker's copy of the data set also ends."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
