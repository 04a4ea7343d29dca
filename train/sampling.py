"""Which samples make up each batch: a pure function of seed, epoch and process, the same number of batches in every epoch."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from vtskip.data.still import STILLS
from vtskip.data.types import Sample
from vtskip.errors import ConfigError
from vtskip.train.options import Sampling

Batch = list[int]
WINDOW = 50  # rounds of batches whose samples are sorted together: shuffled enough, and hardly any padding
BUCKETS = 8  # lengths are told apart by factors of 2 ** (1/8), 9 %


class Batches(Sampler[Batch]):
    """The batches of one process, one epoch after the other (``set_epoch``); a ``batch_sampler`` for torch's DataLoader.

    Batches are dealt out in rounds, one to each of ``processes``, so all take the same number of steps and no sample comes
    twice in an epoch; where their number does not divide evenly the largest are halved. (Batches of one cannot be: there up
    to ``processes - 1`` samples come once more.) With ``length`` or ``modality`` the batches of a round are alike, rounds
    come in random order, and the one with the most tokens comes first: too little memory shows at once.

    ``size``: samples in a batch; with ``sampling.tokens`` their number times the longest is at most that many tokens.
    ``lengths``: tokens of each sample, needed for ``length`` and ``tokens``; ``kinds``: the modality of each.

    Without groups the order is that of ``torch.randperm`` seeded with ``seed + epoch``. Raises ConfigError for a sample that is
    longer than ``tokens``.
    """

    def __init__(
        self,
        count: int,
        size: int,
        sampling: Sampling,
        seed: int = 0,
        lengths: Sequence[int] | None = None,
        kinds: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.count, self.size, self.seed, self.rank, self.processes = count, size, seed, rank, processes
        self.by_length = "length" in sampling.group or sampling.tokens is not None
        self.grouped = bool(sampling.group) or sampling.tokens is not None
        self.tokens, self.lengths = sampling.tokens, list(lengths) if lengths is not None else [1] * count
        chosen = kinds if kinds is not None and "modality" in sampling.group else [""] * count
        self.parts = [[i for i in range(count) if chosen[i] == kind] for kind in sorted(set(chosen))]
        self._check_budget(names)
        self.epoch = 0
        self._rounds = len(self.rounds(0))

    def _check_budget(self, names: Sequence[str] | None) -> None:
        longest = max(range(self.count), key=lambda i: self.lengths[i], default=0)
        if self.tokens is not None and self.count and self.lengths[longest] > self.tokens:
            name = f"sample {names[longest]!r}" if names else f"sample {longest}"
            raise ConfigError(
                f"sampling.tokens {self.tokens}: {name} alone has {self.lengths[longest]}; accepted: at least that many, "
                "or shorter samples (data.max_frames)"
            )

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self._rounds

    def __iter__(self) -> Iterator[Batch]:
        for batches in self.rounds(self.epoch):
            yield batches[self.rank]

    def rounds(self, epoch: int) -> list[list[Batch]]:
        """The batches of an epoch, ``processes`` of them per round."""
        generator = torch.Generator().manual_seed(self.seed + epoch)
        rounds: list[list[Batch]] = []
        for part in self.parts:
            order = [part[i] for i in torch.randperm(len(part), generator=generator).tolist()]
            batches = evened(self.cut(order), self.processes)
            rounds += [batches[i : i + self.processes] for i in range(0, len(batches), self.processes)]
        if self.grouped:
            rounds = [rounds[i] for i in torch.randperm(len(rounds), generator=generator).tolist()]
            heaviest = max(range(len(rounds)), key=lambda i: max(map(self.weight, rounds[i])), default=0)
            rounds = rounds[heaviest : heaviest + 1] + rounds[:heaviest] + rounds[heaviest + 1 :]
        return rounds

    def weight(self, batch: Batch) -> int:
        """Tokens of a batch, padding included."""
        return len(batch) * max(self.lengths[i] for i in batch)

    def cut(self, order: Batch) -> list[Batch]:
        """Samples in random order to batches. How many batches there are does not depend on the order."""
        if self.tokens is not None:
            return self._fill(sorted(order, key=self._bucket, reverse=True), self.tokens)
        if self.by_length:
            window = self.size * self.processes * WINDOW
            parts = [order[i : i + window] for i in range(0, len(order), window)]
            order = [i for part in parts for i in sorted(part, key=lambda i: self.lengths[i], reverse=True)]
        return [order[i : i + self.size] for i in range(0, len(order), self.size)]

    def _bucket(self, index: int) -> int:
        return math.ceil(BUCKETS * math.log2(max(self.lengths[index], 1)))

    def _fill(self, order: Batch, tokens: int) -> list[Batch]:
        """Batches of falling length buckets. A sample counts as long as its bucket may be, so that any other sample of the
        bucket fits in its place: the cuts are the same in every epoch.
        """
        batches: list[Batch] = []
        room = 0
        for index in order:
            if room == 0:
                longest = min(int(2 ** (self._bucket(index) / BUCKETS)), tokens)
                batches.append([])
                room = tokens // longest
            batches[-1].append(index)
            room -= 1
        return batches


def evened(batches: list[Batch], processes: int) -> list[Batch]:
    """As many batches as all processes can share evenly: the largest are halved, where they are."""
    batches = list(batches)
    while len(batches) % processes:
        at = max(range(len(batches)), key=lambda i: len(batches[i]))
        half = (len(batches[at]) + 1) // 2
        if len(batches[at]) > 1:
            batches[at : at + 1] = [batches[at][:half], batches[at][half:]]
        else:
            batches.append(batches[len(batches) % processes - 1])
    return batches


def modality(sample: Sample) -> str:
    """``text``, ``image`` or ``video``."""
    clips = sample.clips
    if not clips:
        return "text"
    return "image" if all(path.suffix.lower() in STILLS for path, _ in clips) else "video"
