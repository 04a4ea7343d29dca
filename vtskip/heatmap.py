"""Pictures of frames in which one sees what the layers keep: dropped rows are dark."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtskip.methods.base import LayerPlanner
from vtskip.runtime.attach import Handle

SIDE = 112  # of a frame in a picture, in pixels
DIM = 0.25  # how much is left of the light of a row that no layer keeps
GAP, LABEL = 4, 60  # between frames, and of the column of labels, in pixels


def routed_layers(handle: Handle) -> list[int]:
    """Layers that the method plans (attaching may plan the last one besides)."""
    return [layer.vtskip.runtime.index for layer in handle._layers if isinstance(layer.vtskip, LayerPlanner)]


def kept_rows(handle: Handle) -> dict[int, Tensor]:
    """Of the last forward: each layer that the method plans -> ``[B, S]`` bool, vision rows that ran attention and FFN."""
    rows, plans, kept = handle.last_rows, handle.last_plans, {}
    if rows is None:
        return {}
    for layer in routed_layers(handle):
        if layer in plans:
            mask = plans[layer].attend.mask & plans[layer].ffn.mask.to(plans[layer].attend.mask.device)
            kept[layer] = mask.to(rows.vision.device) & rows.vision
    return kept


def grid_of(config: Any, size: int) -> tuple[int, int, int]:
    """(rows before the patches, height, width) of a frame of ``size`` rows; a square, or else one line."""
    pool = getattr(config, "pool", None)
    first = int(bool(getattr(config, "cls_token", False))) if pool else 0
    if pool and first + pool[0] * pool[1] == size:
        return first, pool[0], pool[1]
    side = int(size**0.5)
    return (0, side, side) if side * side == size else (0, 1, size)


def shade(frame: np.ndarray, kept: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """The frame, ``[SIDE, SIDE, 3]``, with patches the darker the less their rows are kept; rows before them are a bar on top.

    kept: ``[rows]``, bool or the share of the layers that keep a row.
    """
    first, height, width = grid
    cells = kept[first : first + height * width].reshape(height, width).astype(float)
    places = (np.arange(SIDE) * height // SIDE)[:, None], (np.arange(SIDE) * width // SIDE)[None]
    picture = (frame * (DIM + (1 - DIM) * cells[places])[..., None]).astype(np.uint8)
    if first:
        picture[:4] = np.array((60, 60, 60)) + np.array((30, 140, 30)) * float(kept[0])
    return picture


def png(lines: Sequence[tuple[str, Sequence[np.ndarray]]]) -> bytes:
    """A picture of labelled lines of frames ``[SIDE, SIDE, 3]``."""
    from PIL import Image, ImageDraw

    columns = max((len(frames) for _, frames in lines), default=0)
    size = LABEL + columns * (SIDE + GAP), max(len(lines), 1) * (SIDE + GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for y, (text, frames) in enumerate(lines):
        draw.text((GAP, y * (SIDE + GAP) + SIDE // 2), text, fill="black")
        for x, frame in enumerate(frames):
            sheet.paste(Image.fromarray(frame), (LABEL + x * (SIDE + GAP), y * (SIDE + GAP)))
    held = io.BytesIO()
    sheet.save(held, format="PNG")
    return held.getvalue()


@dataclass
class HeatMap:
    """What the layers keep of a stream's frames, at no more than ``most`` of them at equal distances, however long it gets.

    Attributes:
        handle: of the model that the frames run through, one sample at a time.
        shown: (seconds, frame ``[SIDE, SIDE, 3]``, share ``[rows]`` of the planned layers that keep a row).
    """

    handle: Handle
    config: Any
    most: int = 32
    columns: int = 8
    shown: list[tuple[float, np.ndarray, np.ndarray]] = field(default_factory=list)
    stride: int = 1
    seen: int = 0

    def note(self, frame: Any, time: float) -> None:
        """Right after the forward of one frame, uint8 ``[H, W, 3]``."""
        place, self.seen = self.seen, self.seen + 1
        if place % self.stride:
            return
        self.shown.append((time, _small(np.asarray(frame)), self._share()))
        if len(self.shown) > self.most:
            self.shown, self.stride = self.shown[::2], 2 * self.stride

    def _share(self) -> np.ndarray:
        rows, kept = self.handle.last_rows, kept_rows(self.handle)
        if rows is None:
            return np.zeros(0)
        vision = rows.vision[0].cpu()
        if not kept:
            return np.ones(int(vision.sum()))
        return torch.stack([mask[0].cpu()[vision] for mask in kept.values()]).float().mean(0).numpy()

    def png(self) -> bytes:
        """Lines of frames as they are, and under each one with the light that the layers leave."""
        lines: list[tuple[str, list[np.ndarray]]] = []
        for at in range(0, len(self.shown), self.columns):
            part = self.shown[at : at + self.columns]
            lines.append((f"{part[0][0]:.1f} s", [frame for _, frame, _ in part]))
            lines.append(("kept", [shade(f, share, grid_of(self.config, len(share))) for _, f, share in part]))
        return png(lines)


def _small(frame: np.ndarray) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.NEAREST))
