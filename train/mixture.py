"""The conversations of one epoch: several data sets in their weights, and replies gone wrong."""

import json
import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vtskip._files import write_atomic
from vtskip.data.config import DataConfig
from vtskip.data.types import Sample, Turn
from vtskip.errors import DataError
from vtskip.train.config import TrainConfig
from vtskip.train.sections import Augment

log = logging.getLogger("vtskip.data")


def training_samples(
    config: TrainConfig, progress: bool = True, left_out: dict[str, str] | None = None
) -> list[Sample]:
    """All that is learned in an epoch. Raises DataError where there is nothing, or a fault in an annotation file.

    left_out: gets what ``on_error: skip`` leaves out already here, before anything is decoded: its name and its fault.
    """
    found: list[Sample] = []
    faults = {} if left_out is None else left_out
    for number, source in enumerate(config.sources):
        samples = read(source, progress, faults)
        found += weighted(samples, getattr(source, "weight", 1.0), config.seed + number)
    if not found:
        raise DataError(f"no conversations to train on: {', '.join(map(place_of, config.sources))}")
    return found if config.augment is None else augmented(found, config.augment, config.seed)


def read(source: DataConfig, progress: bool, faults: dict[str, str]) -> list[Sample]:
    """The samples of one data set. Raises DataError; with ``on_error: skip`` where nothing is left."""
    from vtskip import data

    if source.on_error != "skip":
        return data.build(source, progress=progress)

    def watch(name: str, fault: DataError | None) -> None:
        if fault is not None:
            log.warning("skipped: %s", fault)
            faults[name] = str(fault)

    before = len(faults)
    samples = list(data.iterate(source, progress, watch))
    if not samples:
        reason = (
            f"every one was skipped; the first fault: {[*faults.values()][before]}" if len(faults) > before else "none"
        )
        raise DataError(f"{place_of(source)}: no conversations in split {source.split!r} ({reason})")
    return samples


def note_left_out(path: Path, faults: dict[str, str]) -> None:
    """Add what was left out to the run's list of broken samples, once."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = [json.dumps({"sample": name, "video": name, "message": fault}) for name, fault in faults.items()]
    if new := [row for row in rows if row not in lines]:
        write_atomic(path, "".join(f"{line}\n" for line in [*lines, *new]).encode())


def place_of(source: DataConfig) -> str:
    return str(source.root if source.annotations is None else (source.root or "") / source.annotations)


def weighted(samples: list[Sample], weight: float, seed: int) -> list[Sample]:
    """Each sample ``weight`` times; of a broken number the rest goes to some of them, drawn by ``seed``."""
    times, rest = int(weight), round((weight - int(weight)) * len(samples))
    extra = sorted(random.Random(seed).sample(range(len(samples)), rest))
    return samples * times + [samples[i] for i in extra]


def augmented(samples: list[Sample], augment: Augment, seed: int) -> list[Sample]:
    """The samples, some with one reply gone wrong."""
    replies = sorted({turn["content"] for s in samples for turn in s.conversation if turn["role"] == "assistant"})
    return [changed(sample, augment, replies, random.Random(f"{seed} {sample.uid}")) for sample in samples]


def changed(sample: Sample, augment: Augment, replies: Sequence[str], draw: random.Random) -> Sample:
    """``sample``, or a copy in which one reply that is not the last one is another's or left out."""
    turns = sample.conversation
    spoken = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"][:-1]
    # The stream behind it has to have a frame for the correction and one more.
    places = [i for i in spoken if turns[i - 1]["role"] == "stream" and turns[i + 1].get("num_frames", 0) > 1]
    chance = draw.random()
    if not places or chance >= augment.wrong + augment.silent:
        return sample
    at, late = draw.choice(places), draw.random() < 0.5
    fake = None
    if chance < augment.wrong and len(others := [r for r in replies if r != turns[at]["content"]]):
        fake = draw.choice(others)
    before, after = [*turns[:at]], [*turns[at + 2 :]]
    return replace(
        sample, conversation=before + gone_wrong(turns[at], turns[at + 1], fake, late, augment.apology, before) + after
    )


def gone_wrong(reply: Turn, stream: Turn, fake: str | None, late: bool, apology: str, before: list[Turn]) -> list[Turn]:
    """What stands for ``reply`` and the ``stream`` behind it. Where nothing is said the streams around become one."""
    frames = stream["num_frames"]
    wrong: list[Turn] = [] if fake is None else [{"role": "assistant", "content": fake, "learn": False}]
    said = f"{apology} {reply['content']}".strip() if fake is not None else reply["content"]
    first, rest = (1, frames - 1) if late else (frames, 0)
    opening: Turn = {"role": "stream", "num_frames": first, "learn": late}
    if not wrong:  # the frames up to here were to end with a reply: the silence in its place is no example
        earlier = before.pop()
        opening = {"role": "stream", "num_frames": earlier["num_frames"] + first, "learn": False}
    if not late:
        return [*wrong, opening]
    return [*wrong, opening, {**reply, "content": said}, {**stream, "num_frames": rest}]
