"""Attention of the vision tower's CLS token to every patch: caught while images are encoded, handed to planners as scores.

One query row in one tower layer; never a full attention map. ``VIT_CLS`` is of the layer whose output becomes the model's
features, after the softmax; ``VIT_LOGITS`` of the last one, before it. The scores travel with the tower's output, which
``generate`` keeps from before the prefill, and hold no state between forwards.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vtskip.errors import ModelError
from vtskip.models.families import Family
from vtskip.plan import VIT_CLS, VIT_LOGITS, RowMap, View

KINDS = (VIT_CLS, VIT_LOGITS)
SETTINGS = {
    VIT_CLS: ("retain 'cls'", "retain: even"),
    VIT_LOGITS: ("score 'cls'", "score: mean"),
}  # that ask, that do not
ONE_ROW_PER_PATCH = {VIT_CLS: ("llava", "vipllava"), VIT_LOGITS: ("llava", "vipllava", "llava_next")}
TOWERS = ("CLIPVisionModel",)


class HasScores(Protocol):
    """The state of a forward: the scores ``[images, rows of an image]`` of the images encoded for it, by their kind."""

    vit_cls: Tensor | None
    vit_logits: Tensor | None


class ClsWatch:
    """The hooks of one tower. ``with_cls``: the CLS token's own row is among the features; its score is infinite."""

    def __init__(self, state: HasScores, with_cls: bool, kind: str = VIT_CLS):
        self.state, self.with_cls, self.kind = state, with_cls, kind
        self.caught: Tensor | None = None

    def attends(self, attn: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the attention in the layer that counts."""
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        logits = cls_logits(attn, hidden)
        self.caught = logits.softmax(-1).sum(1)[:, 1:] if self.kind == VIT_CLS else logits.mean(1)[:, 1:]

    def encoded(self, tower: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forward hook of the tower."""
        scores, self.caught = self.caught, None
        if scores is not None and self.with_cls:
            scores = nn.functional.pad(scores, (1, 0), value=torch.inf)
        setattr(self.state, self.kind, scores)
        if not isinstance(output, tuple):
            setattr(output, self.kind, scores)


@torch.no_grad()
def cls_logits(attn: nn.Module, hidden: Tensor) -> Tensor:
    """Logits of row 0 for all rows: ``[N, 1 + patches, width] -> [N, heads, 1 + patches]``, fp32 or wider. ``attn`` is a
    ``CLIPAttention``, ``hidden`` its input."""
    q, k = (
        proj(x).unflatten(-1, (-1, attn.head_dim)).transpose(1, 2)
        for proj, x in ((attn.q_proj, hidden[:, :1]), (attn.k_proj, hidden))
    )
    logits = (q @ k.transpose(2, 3)).squeeze(2) * attn.scale
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def watch_cls(
    base: nn.Module, family: Family | None, config: Any, state: HasScores, method: str, kind: str = VIT_CLS
) -> list[Any]:
    """Hook the vision tower of ``base``, the module that holds it. Returns the hooks.

    Raises ModelError, with the reason, for models whose vision rows are not the patches of a CLIP tower one to one.
    """
    reason = reason_against(base, family, kind)
    if reason is not None:
        name, (asks, instead) = type(base).__name__ if family is None else family.model_class, SETTINGS[kind]
        raise ModelError(f"{method}: {asks} cannot work on {name}: {reason}; use {instead}")
    tower = base.vision_tower
    encoder = next(m for m in tower.modules() if type(m).__name__ == "CLIPEncoder")
    watch = ClsWatch(state, getattr(config, "vision_feature_select_strategy", None) == "full", kind)
    attention = encoder.layers[feature_layer(config, len(encoder.layers)) if kind == VIT_CLS else -1].self_attn
    return [
        attention.register_forward_pre_hook(watch.attends, with_kwargs=True),
        tower.register_forward_hook(watch.encoded),
    ]


def reason_against(base: nn.Module, family: Family | None, kind: str = VIT_CLS) -> str | None:
    """Why a model has no CLS attention per vision row, or None."""
    if family is None:
        return "it has no vision tower"
    if family.name == "streaming_llava":
        return "its frames may be encoded long before the forward that reads them, and their features carry no scores"
    if family.name not in ONE_ROW_PER_PATCH[kind]:
        return "its vision rows are not the patches of one CLIP tower one to one (tiled, merged or pooled, or no CLS token)"
    tower = type(getattr(base, "vision_tower", None)).__name__
    if tower in TOWERS:
        return None
    return f"its tower is a {tower}; only {', '.join(TOWERS)} has the CLS token that is needed"


def feature_layer(config: Any, layers: int) -> int:
    """Index of the tower layer whose output becomes the features; the deepest one where several are joined. Read from the
    configuration: a ``vision_feature_layer`` given to a single forward is not seen.

    Hidden state k is the output of layer k - 1, counted from the end that of layer k.
    """
    chosen = getattr(config, "vision_feature_layer", None)
    if chosen is None:
        chosen = config.vision_feature_layers
    indices = [k + layers if k < 0 else k - 1 for k in ([chosen] if isinstance(chosen, int) else chosen)]
    if max(indices) < 0:
        raise ModelError(f"vision_feature_layer {chosen}: the tower's embeddings have no attention; use retain: even")
    return max(indices)


def of_features(inputs: dict[str, Any], kind: str = VIT_CLS) -> Tensor | None:
    """Scores that came with images encoded before this forward."""
    return getattr((inputs.get("mm_encoder_outputs") or {}).get("image"), kind, None)


def in_view(scores: Tensor, view: View) -> Tensor:
    """Scores ``[1 + tiles, side * side]`` of an image's whole view and tiles as those of its rows, 0 on newlines."""
    lines, columns, side = view.tile_rows, view.tile_columns, view.side
    grid = scores[1:].view(lines, columns, side, side).transpose(1, 2).reshape(lines * side, columns * side)
    cells = grid[view.top : view.top + view.height, view.left : view.left + view.width]
    return torch.cat([scores[0], nn.functional.pad(cells, (0, 1)).flatten()])


def tiled_rows(scores: Tensor, rows: RowMap) -> Tensor:
    """``[images and tiles, side * side]`` as ``[B, S]``; see :func:`scores_of_rows`."""
    views = [view for row in rows.views or () for view in row if view is not None]
    counts = [1 + view.tile_rows * view.tile_columns for view in views]
    if not views or len(views) < sum(map(len, rows.sizes)) or sum(counts) % len(scores):
        raise ModelError(
            f"score 'cls' needs the vision tower's attention for {len(views)} tiled images of {sum(counts)} views and tiles, "
            f"but {len(scores)} of them came with this forward: give it pixel_values and image_sizes, or use score: mean"
        )
    repeats, at, found = sum(counts) // len(scores), 0, []
    for b, row in enumerate(rows.views or ()):
        images = [(view, 1 + view.tile_rows * view.tile_columns) for view in row if view is not None]
        at -= sum(n for _, n in images) if b % repeats else 0
        for view, n in images:
            found.append(in_view(scores[at : at + n], view))
            at += n
    flat = torch.cat(found).to(rows.vision.device)
    return flat.new_zeros(rows.vision.shape).masked_scatter(rows.vision, flat)


def scores_of_rows(scores: Tensor | None, rows: RowMap, kind: str = VIT_CLS) -> Tensor:
    """``[images, patches]`` as ``[B, S]``, 0 on rows without vision. Beams and returned sequences share their sample's images.

    Raises ModelError where the scores are missing or do not fit the vision rows.
    """
    if kind == VIT_LOGITS and scores is not None and rows.views is not None:
        return tiled_rows(scores, rows)
    per_sample, (asks, instead) = [sum(sizes) for sizes in rows.sizes], SETTINGS[kind]
    if scores is None or sum(per_sample) % scores.numel():
        found = "none came" if scores is None else f"{scores.numel()} came"
        raise ModelError(
            f"{asks} needs the vision tower's attention for {sum(per_sample)} vision rows, but {found} with this "
            f"forward: give it pixel_values or the tower's whole output, or use {instead}"
        )
    repeats = sum(per_sample) // scores.numel()
    if repeats > 1:
        starts = [sum(per_sample[: b - b % repeats : repeats]) // scores.shape[1] for b in range(len(per_sample))]
        ends = [start + n // scores.shape[1] for start, n in zip(starts, per_sample)]
        scores = torch.cat([scores[start:end] for start, end in zip(starts, ends)])
    scores = scores.to(rows.vision.device)
    return scores.new_zeros(rows.vision.shape).masked_scatter(rows.vision, scores)
