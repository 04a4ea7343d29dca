"""The same few frames looked at again and again: what the routers keep of them, how sure they are, and pictures of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtskip._files import write_atomic
from vtskip.data.types import Sample
from vtskip.data.video import read_frames
from vtskip.heatmap import SIDE, kept_rows, png, shade
from vtskip.plan import RowMap
from vtskip.runtime.attach import Handle, attached, routers_of

BATCH_ONLY = {"labels"}


@dataclass
class Look:
    """What each layer keeps of the probe: ``kept`` layer -> ``[B, S]`` bool; ``entropy``: of the routers, in bits."""

    rows: RowMap
    kept: dict[int, Tensor]
    entropy: float | None


class Probe:
    """``count`` of the shortest samples that show something, as one batch, never trained on here.

    In training mode's place the model runs in eval mode without gradients and with its random state put back, so a run that
    probes takes the same steps as one that does not.
    """

    def __init__(self, samples: Sequence[Sample], collate: Any, count: int) -> None:
        shown = [s for s in samples if s.frames]
        self.samples = sorted(shown, key=lambda s: (len(s.frames), s.uid))[:count]
        self.collate = collate
        self.batch: dict[str, Any] | None = None
        self.before: dict[int, Tensor] = {}

    def look(self, model: nn.Module, device: torch.device) -> Look | None:
        """None without samples or without a method. Every process has to call it."""
        handle = attached(model)
        if handle is None or not self.samples:
            return None
        if self.batch is None:
            batch = self.collate(self.samples)
            self.batch = {k: v for k, v in batch.items() if k not in BATCH_ONLY}
        inputs = {k: v.to(device) if torch.is_tensor(v) else v for k, v in self.batch.items()}
        scores: list[Tensor] = []
        routers = {id(router): router for layer in handle._layers for router in routers_of(layer.vtskip)}
        hooks = [r.register_forward_hook(partial(_note, scores)) for r in routers.values()]
        training = model.training
        half = any(
            p.dtype == torch.bfloat16 for p in model.parameters()
        )  # frozen beside adapters, in a run under autocast
        fixed = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
        try:
            with fixed, torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=half):
                model.eval()(**inputs)
        finally:
            model.train(training)
            for hook in hooks:
                hook.remove()
        return _look(handle, scores)

    def measure(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """``kept_overlap``: of the rows kept now or at the last look, the share that both have; ``router_entropy``."""
        look = self.look(model, device)
        if look is None:
            return {}
        values = {}
        shares = [overlap(look.kept[i], self.before[i]) for i in look.kept if i in self.before]
        found = [share for share in shares if share is not None]
        if found:
            values["kept_overlap"] = sum(found) / len(found)
        if look.entropy is not None:
            values["router_entropy"] = look.entropy
        self.before = {i: kept.cpu() for i, kept in look.kept.items()}
        return values

    def draw(self, look: Look, grid: tuple[int, int, int], frames: int, path: Path) -> None:
        """Write a PNG: a line per layer that skips, the first ``frames`` frames from left to right, dropped rows dark.

        ``grid``: rows before the patches of a frame, and the patches' height and width.
        """
        sample = self.samples[0]
        parts = [read_frames(file, indices, SIDE) for file, indices in sample.clips]
        shown = np.concatenate(parts)[:frames]
        lines = []
        for layer in sorted(look.kept):
            kept = kept_of_frames(look, layer, len(shown))
            lines.append((f"layer {layer}", [shade(f, k, grid) for f, k in zip(shown, kept)]))
        write_atomic(path, png(lines))


def _note(scores: list[Tensor], module: nn.Module, args: Any, output: Tensor) -> None:
    scores.append(output.detach().float())


def _look(handle: Handle, scores: list[Tensor]) -> Look | None:
    rows = handle.last_rows
    if rows is None:
        return None
    bits = [binary_entropy(score, rows.vision) for score in scores]
    return Look(rows, kept_rows(handle), sum(bits) / len(bits) if bits else None)


def binary_entropy(score: Tensor, vision: Tensor) -> float:
    """Mean over vision rows (or samples) of the entropy of ``sigmoid(score)``, in bits: 1 undecided, 0 certain.

    score: ``[B, S]``, ``[B, S, 2]`` (logits of dropped and kept) or one per sample.
    """
    if score.ndim == 3 and score.shape[-1] == 2:
        score = score[..., 1] - score[..., 0]
    if score.shape[:2] == vision.shape:
        score = score.reshape(vision.shape)[vision.to(score.device)]
    p = score.sigmoid()
    nats = F.softplus(score) - p * score
    return (nats.mean() / np.log(2)).item()


def overlap(now: Tensor, before: Tensor) -> float | None:
    """Share of the rows kept in either that are kept in both; None where both keep nothing."""
    now = now.cpu()
    either = int((now | before).sum())
    return int((now & before).sum()) / either if either else None


def kept_of_frames(look: Look, layer: int, frames: int) -> list[np.ndarray]:
    """Of the first sample: per frame which of its rows are kept."""
    group, vision = look.rows.group[0].cpu(), look.rows.vision[0].cpu()
    kept = look.kept[layer][0].cpu()
    return [kept[vision & (group == n)].numpy() for n in range(min(frames, len(look.rows.sizes[0])))]
