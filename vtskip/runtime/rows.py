"""Reads the vision rows of a forward from the model's inputs, once, before any layer runs."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vtskip.errors import ModelError
from vtskip.kernels.dispatch import ranker
from vtskip.models.cls_attention import KINDS, of_features
from vtskip.models.families import Family
from vtskip.models.groups import cut_up
from vtskip.models.sharding import same_modules
from vtskip.plan import RowMap, View, run_lengths
from vtskip.runtime.stats import StepState

NO_ROWS = (
    "vtskip: inputs_embeds were given, in which vision rows cannot be told from text, so all are treated as text; say where "
    "they are with Handle.rows(vision, group)"
)
CHUNKS = (
    "prefill_chunk_size cuts images and frames, among whose rows the attached method chooses: each part would be taken for an "
    "image; generate without it, or feed image by image over one cache"
)

Views = tuple[tuple[View | None, ...], ...]
COMPLETE = "complete"  # key of RowMap.memo: no row of this forward or of those before it is padding


@dataclass
class Layout:
    """Vision rows given by hand, over the logical sequence: ``vision`` ``[B, L]``, ``group`` ``[B, L]`` ordinals or None.

    A forward over rows ``past`` to ``past + S`` reads that part of it; rows beyond ``L`` are text.
    """

    vision: np.ndarray
    group: np.ndarray | None

    def part(self, past: int, length: int, batch: int) -> tuple[np.ndarray, list[list[int]] | None]:
        repeats = batch // self.vision.shape[0]  # beams and returned sequences repeat each sample
        if repeats * self.vision.shape[0] != batch:
            raise ModelError(f"rows were given for {self.vision.shape[0]} samples, but the batch has {batch}")
        vision = np.zeros((batch, length), bool)
        given = self.vision[:, past : past + length].repeat(repeats, 0)
        vision[:, : given.shape[1]] = given
        if self.group is None:
            return vision, None
        group = self.group[:, past : past + length].repeat(repeats, 0)
        sizes = []
        for b in range(batch):
            ids = group[b, vision[b, : group.shape[1]]]
            if (np.diff(ids) < 0).any():
                raise ModelError(f"sample {b}: group ids must not decrease along the sequence, got {ids.tolist()}")
            sizes.append(np.unique(ids, return_counts=True)[1].tolist())
        return vision, sizes


@dataclass
class RowReader:
    """The pre- and post-hook of the module whose forward sees the model's inputs. Holds no reference to the model."""

    state: StepState
    family: Family | None
    config: Any
    arg_names: tuple[str, ...]
    warned: bool = False

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        return {**dict(zip(self.arg_names, args)), **kwargs}

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs, state = self.bind(args, kwargs), self.state
        state.enter(module)
        rows = self.read(inputs)
        if rows is not None and state.bucket is not None:
            rows = rows.bucketed(state.bucket)
        if rows is not None:
            rows.ranks = ranker(rows.vision.device)
        state.uniform = same_modules(module)
        state.plain, state.attentions = self.plain(inputs), self.attentions(inputs)
        state.begin(self.read_text(inputs) if rows is None else rows)
        for kind in KINDS:
            setattr(state, kind, of_features(inputs, kind))

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not self.state.leave():
            return
        if output is None:  # the forward raised: nothing to count
            self.state.begin(None)
            return
        inputs = self.bind(args, kwargs)
        tokens = inputs.get("input_ids")
        batch, length = (tokens if tokens is not None else inputs["inputs_embeds"]).shape[:2]
        cache = inputs.get("past_key_values")
        self.state.finish(batch, length, cache if cache is not None else getattr(output, "past_key_values", None))

    def read(self, inputs: dict[str, Any]) -> RowMap | None:
        """The RowMap of a forward, or None for a step without vision rows."""
        tokens, embeds, cache = inputs.get("input_ids"), inputs.get("inputs_embeds"), inputs.get("past_key_values")
        source = tokens if tokens is not None else embeds
        if source is None:
            return None
        batch, length = source.shape[:2]
        override: Layout | None = self.state.override
        if override is not None:
            past = 0 if cache is None else int(cache.get_seq_length())
            if past >= override.vision.shape[1]:
                return None
            vision, sizes = override.part(past, length, batch)
        elif self.family is not None and any(_given(inputs.get(name)) for name in self.family.inputs):
            if tokens is None:
                raise ModelError(
                    "vtskip finds vision rows by their placeholder ids, but only inputs_embeds were given; "
                    "pass input_ids, or say where the rows are with Handle.rows(vision=...)"
                )
            vision, sizes = self.from_tokens(tokens, inputs)
        else:
            if tokens is None and length > 1 and not self.warned and not self.state.every_step:
                self.warned = True
                warnings.warn(NO_ROWS, UserWarning, stacklevel=2)
            return None
        if not vision.any():
            return None
        views = None if sizes is None or override is not None else self.views(inputs, sizes)
        mask = inputs.get("attention_mask")
        valid, past_rows, complete = _valid(mask, length, cache)
        if valid is not None and sizes is not None and (vision & ~valid).any():
            vision, sizes, views = without_hidden(vision, valid, sizes, views)
            if not vision.any():
                return None
        rows = RowMap.build(vision, valid, sizes, past_rows, source.device)
        rows.views = views
        rows.memo[COMPLETE] = complete
        return rows

    def read_text(self, inputs: dict[str, Any]) -> RowMap | None:
        """The RowMap of a step without vision rows: for methods that plan those too, and where there is padding to leave out."""
        source = inputs["inputs_embeds"] if inputs.get("input_ids") is None else inputs["input_ids"]
        planned = self.state.every_step or self.state.uniform
        if source is None or not (planned or (self.state.packs and self.state.plain and source.shape[1] > 1)):
            return None
        batch, length = source.shape[:2]
        valid, past, _ = _valid(inputs.get("attention_mask"), length, inputs.get("past_key_values"))
        if not planned and (valid is None or valid.all()):
            return None
        return RowMap.build(np.zeros((batch, length), bool), valid, None, past, source.device)

    def views(self, inputs: dict[str, Any], sizes: list[list[int]]) -> Views | None:
        """How the rows of each sample's images lie; None where the family has no tiles or nothing tells.

        Beams and returned sequences share their sample's images, which features encoded beforehand name once.
        """
        family, pixels = self.family, inputs.get("image_sizes")
        if family is None or family.views is None:
            return None
        known = getattr((inputs.get("mm_encoder_outputs") or {}).get("image"), "views", None)
        found = known if pixels is None else family.views(pixels, self.config)
        images = sum(map(len, sizes))
        if not found or images % len(found):
            return None
        repeats, views, at = images // len(found), [], 0
        for b, row in enumerate(sizes):
            at -= len(row) if b % repeats else 0
            views.append(tuple(found[at : at + len(row)]))
            at += len(row)
        return tuple(views)

    def attentions(self, inputs: dict[str, Any]) -> bool:
        """Whether the attention maps are asked for, which transformers takes from the attention modules' outputs."""
        asked = inputs.get("output_attentions")
        configs = (self.config, self.config.get_text_config())
        return any(getattr(c, "output_attentions", False) for c in configs) if asked is None else bool(asked)

    def plain(self, inputs: dict[str, Any]) -> bool:
        """Whether the masks that layers get express order and padding alone: of a given 2-D mask the model makes no others.

        Without one and without a cache, packed documents may be told by their positions.
        """
        mask = inputs.get("attention_mask")
        causal = self.family is None or self.family.attends == "causal"
        if mask is None:
            return causal and inputs.get("past_key_values") is not None
        return causal and torch.is_tensor(mask) and mask.dim() == 2

    def from_tokens(self, tokens: Tensor, inputs: dict[str, Any]) -> tuple[np.ndarray, list[list[int]]]:
        """Placeholder positions and, per sample, the sizes of its groups in sequence order."""
        assert self.family is not None
        ids = tokens.cpu().numpy()  # the one device synchronisation of a forward; only steps with vision have it
        vision = np.zeros(ids.shape, bool)
        starts: list[dict[int, int]] = [{} for _ in ids]  # first row of a group -> its size
        for modality, token_id in self.family.token_ids(self.config).items():
            here = ids == token_id
            if not here.any():
                continue
            vision |= here
            if cut_up(modality, inputs):
                if self.state.chooses:
                    raise ModelError(CHUNKS)
                sizes = None
            else:
                sizes = self.family.groups[modality](modality, here, inputs, self.config)
            _place(here, sizes, starts, modality)
        return vision, [[size for _, size in sorted(row.items())] for row in starts]


def _given(value: Any) -> bool:
    """Whether an input brings vision; ``generate`` passes an empty ``mm_encoder_outputs`` where there is none."""
    return any(v is not None for v in value.values()) if type(value) is dict else value is not None


def _place(here: np.ndarray, sizes: list[int] | None, starts: list[dict[int, int]], modality: str) -> None:
    """Walk the placeholders of one modality, sample by sample, and note where each group begins."""
    if sizes is None:
        sizes = [n for row in here for n in run_lengths(row)]
    total, rows = sum(sizes), int(here.sum())
    if total != rows:
        raise ModelError(
            f"{modality}: the inputs describe {total} rows {sizes[:8]}, but there are {rows} placeholder tokens"
        )
    pending = iter(sizes)
    for b, row in enumerate(here):
        places = np.flatnonzero(row)
        at = 0
        while at < len(places):
            size = next(pending)
            if at + size > len(places):
                raise ModelError(f"{modality}: a group of {size} rows reaches over the end of sample {b}")
            starts[b][int(places[at])] = size
            at += size


def _valid(mask: Any, length: int, cache: Any) -> tuple[np.ndarray | None, list[int] | int, bool]:
    """Padding of this step's rows (None: no padding), how many content rows each sample had before it, and whether there is
    no padding in all steps."""
    past = 0 if cache is None else int(cache.get_seq_length())
    if not torch.is_tensor(mask) or mask.dim() != 2:
        return None, past, mask is None
    host = mask.bool().cpu().numpy()
    before = host[:, : host.shape[1] - length].sum(1)
    return host[:, -length:], before.tolist() if host.shape[1] > length else past, bool(host.all())


def reader_for(module: nn.Module, state: StepState, family: Family | None, config: Any) -> RowReader:
    names = tuple(n for n in inspect.signature(module.forward).parameters if n not in ("args", "kwargs"))
    return RowReader(state, family, config, names)


def without_hidden(
    vision: np.ndarray, valid: np.ndarray, sizes: Any, views: Views | None = None
) -> tuple[np.ndarray, list[list[int]], Views | None]:
    """Vision rows without the images or frames that the attention mask hides whole, and the sizes and views of the others.

    Raises ModelError for one that is hidden in part.
    """
    left: list[list[int]] = []
    lie = []
    for b, (row, seen, groups) in enumerate(zip(vision, valid, sizes)):
        shown = np.split(seen[row], np.cumsum(groups)[:-1]) if len(groups) else []
        if any(part.any() and not part.all() for part in shown):
            raise ModelError("the attention mask hides vision rows: an image or frame cannot be partly padding")
        left.append([int(size) for size, part in zip(groups, shown) if part.all()])
        lie.append(() if views is None else tuple(view for view, part in zip(views[b], shown) if part.all()))
    return vision & valid, left, None if views is None else tuple(lie)
