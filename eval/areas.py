"""What the rows kept have to do with what a clip is about: the synthetic set's areas on the patch grid, and recall at k.

An area is moving or static, relevant or irrelevant (``vtskip.data.synthetic.relevance``). A summary row (CLS) has no place and
is no area; it takes one of the k places like any row.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtskip.data import DataConfig
from vtskip.data.synthetic.relevance import (
    KINDS,
    MOVING,
    RELEVANT,
    is_moving,
    is_relevant,
    rasterise,
    read_relevance,
)
from vtskip.data.types import Sample

Count = tuple[float, float]
PATCHES = 16  # cells per side that areas are found on, before they are pooled
SHARE = 0.25  # of a pooled cell
NOWHERE = 255


def has_areas(data: DataConfig) -> bool:
    """Whether the clips of a data section come with areas."""
    return data.kind == "synthetic"


def kinds_of(sample: Sample) -> np.ndarray:
    """uint8 ``[N, 16, 16]``: the kind of every cell of a synthetic sample's frames. Raises DataError without its file."""
    return _kinds(sample.video.parent.parent / "relevance" / f"{sample.video.stem}.json", tuple(sample.frames))


@lru_cache(maxsize=512)  # every row asks for the same samples
def _kinds(path: Path, frames: tuple[int, ...]) -> np.ndarray:
    if not frames:
        return np.zeros((0, PATCHES, PATCHES), np.uint8)
    value = read_relevance(path)
    return np.stack([rasterise(value, frame, (PATCHES, PATCHES)) for frame in frames])


def pooled(kinds: np.ndarray, pool: Sequence[int], rows: int) -> np.ndarray:
    """uint8 ``[N, rows]``: the kind of each row of a frame, ``NOWHERE`` for the rows before the grid ``pool``.

    A cell is relevant where ``SHARE`` of it is, and moving where at least half of that moves; else it moves where ``SHARE`` does.
    """

    def share(of: np.ndarray) -> np.ndarray:
        cells = torch.as_tensor(of).float().unsqueeze(1)
        return torch.nn.functional.adaptive_avg_pool2d(cells, tuple(pool)).flatten(1).numpy()

    relevant, moving = is_relevant(kinds), is_moving(kinds)
    told = share(relevant)
    moves = np.where(told >= SHARE, share(relevant & moving) >= told / 2, share(~relevant & moving) >= SHARE)
    flat = (RELEVANT * (told >= SHARE) + MOVING * moves).astype(np.uint8)
    before = np.full((len(flat), rows - flat.shape[1]), NOWHERE, np.uint8)
    return np.concatenate([before, flat], axis=1)


def scores_of(kinds: np.ndarray, relevant: bool, seed: int) -> Tensor:
    """``[N, rows]``: relevant rows before all others, or behind them; equals in an order drawn from ``seed``."""
    told = torch.as_tensor(is_relevant(kinds) & (kinds != NOWHERE))
    noise = torch.rand(told.shape, generator=torch.Generator().manual_seed(seed))
    return (told == relevant).float() + noise / 2


def kept_of(handle: Any) -> list[np.ndarray]:
    """bool ``[layers, frames, rows]`` of each sample in the last forward that had frames: the rows that asked."""
    rows, plans = handle.last_rows, handle.last_plans
    if rows is None:
        return []
    masks = torch.stack([plans[i].attend.mask if i in plans else rows.vision for i in range(handle.shape.layers)])
    masks, vision = masks.cpu(), rows.vision.cpu()
    return [masks[:, b, vision[b]].unflatten(1, (len(n), -1)).numpy() for b, n in enumerate(rows.sizes) if n]


def found(kept: np.ndarray, kinds: np.ndarray) -> dict[str, Any]:
    """JSON-ready counts of one sample: ``kept [layers, frames, rows]`` against ``kinds [frames, rows]``.

    ``cells``: rows of every kind; ``layers``: of each layer that leaves rows out: ``hits`` relevant rows kept, ``best`` how many
    could have been (sum over frames of min(k, relevant)), ``expected`` by chance, ``kept`` rows of every kind.
    """
    relevant = is_relevant(kinds) & (kinds != NOWHERE)
    due = relevant.sum(1)
    layers = []
    for number, mask in enumerate(kept):
        k = mask.sum(1)
        if mask.all():
            continue
        layers.append(
            {
                "layer": number,
                "hits": int((mask & relevant).sum()),
                "best": int(np.minimum(k, due).sum()),
                "expected": float((k * due).sum() / kinds.shape[1]),
                "kept": [int((mask & (kinds == kind)).sum()) for kind in range(len(KINDS))],
            }
        )
    return {"cells": [int((kinds == kind).sum()) for kind in range(len(KINDS))], "layers": layers}


def router_counts(areas: Mapping[str, Any]) -> dict[str, Count]:
    """Metrics of one sample as (value, weight), over its routed layers and for each.

    ``recall``: relevant rows kept, of as many as k rows could hold; ``chance``: that of rows drawn at random; ``enrichment``:
    recall over chance. ``static_relevant``, ``moving_relevant``: share of such rows that is kept; ``moving_irrelevant_rejected``:
    share of rows that move and tell nothing that is left out. Motion does well at the first alone if all that tells moves.
    """
    layers, cells = areas["layers"], areas["cells"]
    if not layers:
        return {}
    hits, best, expected = (float(sum(layer[key] for layer in layers)) for key in ("hits", "best", "expected"))
    out: dict[str, Count] = {"recall": (hits, best), "chance": (expected, best), "enrichment": (hits, expected)}
    kinds = np.arange(len(KINDS))
    for kind, name in enumerate(KINDS):
        kept, total = float(sum(layer["kept"][kind] for layer in layers)), float(cells[kind] * len(layers))
        if is_relevant(kinds)[kind]:
            out[name] = (kept, total)
        elif is_moving(kinds)[kind]:
            out[f"{name}_rejected"] = (total - kept, total)
    return out | {f"recall@layer{layer['layer']}": (float(layer["hits"]), float(layer["best"])) for layer in layers}
