"""Samples to batches of a stock multimodal model."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vtskip.data.collate import IGNORE
from vtskip.data.types import Sample, Shown
from vtskip.train.chat import ChatTemplate, blank_message, blank_picture, token_like


class ChatCollator:
    """Turns samples into the model's own inputs, ``input_ids, attention_mask, labels [B, S]`` among them, padded on the right.

    ``always``: of ``image`` and ``video``, what every batch shows: one that does not gets a masked blank one, so that tower
    and connector are called as often in every process of a sharded run. Their gradients are then zeros, where otherwise other
    processes would wait for them.
    """

    def __init__(self, template: ChatTemplate, always: Iterable[str] = ()) -> None:
        self.template, self.always = template, sorted(always)

    def look(self, sample: Sample) -> Any:
        """What a sample shows. Raises DataError naming the file of a fault."""
        return self.template.look(sample)

    def length(self, sample: Sample) -> int:
        """About how many tokens a sample has, its pictures included."""
        return self.template.length(sample)

    def __call__(self, samples: Sequence[Sample | Shown]) -> dict[str, Tensor]:
        pairs = [(s.sample, s.vision) if isinstance(s, Shown) else (s, self.look(s)) for s in samples]
        rows = [self.template.encode(sample, shown) for sample, shown in pairs]
        there = {kind for sample, _ in pairs for kind in self.template.kinds(sample)} if self.always else set()
        for kind in self.always:
            if kind not in there:
                rows[0] = with_blank(self.template, rows[0], kind)
        return merged(rows, int(self.template.tokenizer.pad_token_id))


def shown_kinds(template: ChatTemplate, samples: Iterable[Sample]) -> set[str]:
    """What a run shows to the model: ``image``, ``video`` or both; an image where no sample shows anything."""
    return {kind for sample in samples for kind in template.kinds(sample)} or {"image"}


def with_blank(template: ChatTemplate, row: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """A sample's inputs with a blank image or video behind it that nothing attends to and nothing is learned of."""
    blank = template.inputs(template.render([blank_message(kind)]).text, [blank_picture(56, kind)])
    length, more = row["input_ids"].shape[1], blank["input_ids"].shape[1]
    blank["attention_mask"] = torch.zeros_like(blank["input_ids"])
    blank["labels"] = torch.full_like(blank["input_ids"], IGNORE)
    joined = {}
    for key in [*row, *(k for k in blank if k not in row)]:
        if key in row and key in blank and token_like(row[key], length) and token_like(blank[key], more):
            joined[key] = torch.cat([row[key], blank[key]], dim=1)
        elif key in blank and token_like(blank[key], more):
            joined[key] = torch.cat([blank[key].new_zeros(1, length), blank[key]], dim=1)
        else:
            joined[key] = blank[key] if key in blank else row[key]
    return joined


def merged(rows: Sequence[dict[str, Tensor]], pad_id: int) -> dict[str, Tensor]:
    """One batch: values per token padded on the right, pictures joined in row order (with zeros where they are smaller)."""
    lengths = [row["input_ids"].shape[1] for row in rows]
    longest, fill = max(lengths), {"input_ids": pad_id, "labels": IGNORE}
    batch = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        there = [(row[key], length) for row, length in zip(rows, lengths) if key in row]
        if all(token_like(value, length) for value, length in there):
            full = [
                F.pad(
                    row[key] if key in row else row["input_ids"].new_zeros(1, n),
                    (0, longest - n),
                    value=fill.get(key, 0),
                )
                for row, n in zip(rows, lengths)
            ]
            batch[key] = torch.cat(full)
        else:
            batch[key] = joined([value for value, _ in there])
    return batch


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Along the first dimension; the others grow to the largest, with zeros."""
    if tensors[0].ndim == 0:
        return torch.stack(list(tensors))
    sizes = [max(t.shape[d] for t in tensors) for d in range(1, tensors[0].ndim)]
    padded = []
    for tensor in tensors:
        room = [n for d in range(tensor.ndim - 1, 0, -1) for n in (0, sizes[d - 1] - tensor.shape[d])]
        padded.append(F.pad(tensor, room))
    return torch.cat(padded)
