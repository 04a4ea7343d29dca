"""The loader of training batches: each says which samples it is made of, and the time spent waiting for it is measured."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from vtskip.data.collate import StreamCollator
from vtskip.data.guarded import Guarded
from vtskip.data.types import Sample
from vtskip.errors import DataError
from vtskip.train.options import Sampling
from vtskip.train.sampling import Batches, modality

ORIGIN = "origin"  # key of a batch: what it is made of; taken out before the model sees it


class WithOrigin:
    """A collator whose batches carry ``ORIGIN``: their samples, how many tokens they have, and how many with padding.

    Counted in the loader's processes: on the device it would cost a synchronisation.
    """

    def __init__(self, collate: Callable[[Sequence[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, items: Sequence[Any]) -> dict[str, Any]:
        batch = dict(self.collate(items))
        samples: list[Sample] = [getattr(item, "sample", item) for item in items]
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        batch[ORIGIN] = {
            "samples": [{"uid": s.uid, "files": [str(path) for path, _ in s.clips]} for s in samples],
            "tokens": ids.numel() if mask is None else int(mask.sum()),
            "padded": ids.numel(),
        }
        return batch


def token_counts(samples: Sequence[Sample], collate: Any, exact: bool) -> list[int]:
    """Tokens of each sample, its vision rows included.

    A stream's follow from its conversation. How many rows a stock model makes of a picture only its processor knows, so
    with ``exact`` every picture is read once; one with a fault counts 1 and is met again in training. Without, no file is
    opened, and a picture counts as much as any other.
    """
    if isinstance(collate, StreamCollator):
        return [len(collate.template.encode(sample.conversation).input_ids) for sample in samples]
    if not exact:
        return [collate.length(sample) for sample in samples]
    return [_collated_length(sample, collate) for sample in samples]


def _collated_length(sample: Sample, collate: Any) -> int:
    try:
        return int(collate([sample])["input_ids"].shape[1])
    except DataError:
        return 1


def batches_of(
    samples: Sequence[Sample],
    collate: Any,
    size: int,
    sampling: Sampling,
    seed: int,
    rank: int = 0,
    processes: int = 1,
) -> Batches:
    """The batches of one process; lengths are only counted where they matter, and as well as they do."""
    long = sampling.tokens is not None or "length" in sampling.group
    lengths = token_counts(samples, collate, sampling.tokens is not None) if long else None
    kinds = [modality(sample) for sample in samples] if "modality" in sampling.group else None
    names = [sample.uid for sample in samples]
    return Batches(len(samples), size, sampling, seed, lengths, kinds, names, rank, processes)


def make_loader(dataset: Dataset, collate: Any, batches: Batches, workers: int, prefetch: int, pin: bool) -> DataLoader:
    """Decoding and collating run in ``workers`` processes, ``prefetch`` batches ahead of each, beside the training.

    The generator is only asked for the workers' seeds, which nothing in them needs. Without one of its own a loader would draw
    these from the random numbers of the training: in every epoch without workers, once with them, and once more when resumed.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=WithOrigin(collate),
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        persistent_workers=workers > 0,
        pin_memory=pin,
        generator=torch.Generator().manual_seed(0),
    )


class Waited:
    """An iterator that adds up the seconds its consumer waits, and names the file of a fault in a loader process."""

    def __init__(self, batches: Iterator[Any], guarded: Guarded | None, add: Callable[[float], None]) -> None:
        self.batches, self.guarded, self.add = batches, guarded, add

    def __iter__(self) -> "Waited":
        return self

    def __next__(self) -> Any:
        start = time.perf_counter()
        try:
            if self.guarded is None:
                return next(self.batches)
            with self.guarded.named():
                return next(self.batches)
        finally:
            self.add(time.perf_counter() - start)
