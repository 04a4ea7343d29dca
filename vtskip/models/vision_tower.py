"""Any open_clip image tower as a module that gives one summary vector and a grid of patch vectors per image."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import torch
from open_clip.factory import load_state_dict
from open_clip.model import CLIPVisionCfg, _build_vision_tower, resize_pos_embed
from torch import Tensor, nn

from vtskip.errors import CheckpointError, ModelError, nearest

# Parts of open_clip and timm towers that only the pooled image vector passes through.
POOLING_PARTS = (
    "attn_pool",
    "attn_pool_contrastive",
    "attnpool",
    "head",
    "trunk.attn_pool",
    "trunk.head",
    "trunk.fc_norm",
)


def resolve(vision: str | Mapping[str, Any], image_size: int | None) -> tuple[dict[str, Any], int, bool]:
    """``(vision_cfg, embed_dim, quick_gelu)`` of an open_clip model name or of a dict of CLIPVisionCfg keys.

    Raises ModelError for an unknown name or key, with the nearest one.
    """
    if isinstance(vision, str):
        known = open_clip.get_model_config(vision) if vision in open_clip.list_models() else None
        if known is None:
            raise ModelError(f"vision {vision!r}: no such open_clip model{nearest(vision, open_clip.list_models())}")
        cfg, embed_dim, quick = dict(known["vision_cfg"]), known["embed_dim"], known.get("quick_gelu", False)
    else:
        cfg = dict(vision)
        embed_dim, quick = cfg.pop("embed_dim", cfg.get("width", 0)), cfg.pop("quick_gelu", False)
        accepted = asdict(CLIPVisionCfg()).keys()
        for key in cfg:
            if key not in accepted:
                names = [*accepted, "embed_dim", "quick_gelu"]
                raise ModelError(f"vision: unknown key {key!r}{nearest(key, names)}; accepted: {', '.join(names)}")
    if image_size is not None:
        cfg["image_size"] = image_size
    cfg["timm_model_pretrained"] = False  # weights come with a checkpoint or by `pretrained_state`, never by building
    return cfg, embed_dim, quick


def normalisation(vision: str | Mapping[str, Any], pretrained: str | None) -> tuple[list[float], list[float]]:
    """Mean and standard deviation, per channel in [0, 1], that the tower was trained with (OpenAI's if nothing is known)."""
    known: dict[str, Any] = {}
    if isinstance(vision, str):
        tags = open_clip.list_pretrained_tags_by_model(vision)
        tag = pretrained if pretrained in tags else next(iter(tags), None)
        known = open_clip.get_pretrained_cfg(vision, tag) if tag else {}
    mean, std = known.get("mean"), known.get("std")
    return list(mean or open_clip.OPENAI_DATASET_MEAN), list(std or open_clip.OPENAI_DATASET_STD)


class VisionTower(nn.Module):
    """An open_clip tower with random weights. ``forward``: images [N, 3, S, S] -> summary [N, C], grid [N, C, h, w].

    The grid is the normed output of the last block. The summary is the class token; towers without one (SigLIP,
    convolutional ones) give their pooled vector where it has the width of the grid, else the mean of the grid. So does a
    transformer of no blocks (``layers: 0``), whose patches know of nothing but themselves.
    """

    def __init__(
        self, vision: str | Mapping[str, Any], image_size: int | None, summary: bool, pretrained: str | None = None
    ):
        super().__init__()
        cfg, embed_dim, quick = resolve(vision, image_size)
        if isinstance(vision, str) and pretrained:
            quick = quick or open_clip.get_pretrained_cfg(vision, pretrained).get("quick_gelu", False)
        try:
            self.visual = _build_vision_tower(embed_dim, CLIPVisionCfg(**cfg), quick)
        except (RuntimeError, AssertionError, TypeError, ZeroDivisionError) as e:
            raise ModelError(f"vision {vision!r}: open_clip cannot build it ({e})") from e
        self.image_size = _side(cfg.get("image_size", CLIPVisionCfg.image_size))
        visual = self.visual
        self.patches_alone = False
        if isinstance(visual, open_clip.transformer.VisionTransformer):
            visual.proj = None  # leads to the space of the text tower: no feature of the image alone
            self.width = cfg.get("width", CLIPVisionCfg.width)
            self.patches_alone = not len(visual.transformer.resblocks)
            self.read = "prefix" if visual.pool_type != "avg" and not self.patches_alone else "mean"
            self.norm = visual.attn_pool is None  # with attentional pooling ln_post belongs behind the pool
        elif hasattr(visual, "trunk"):
            if image_size is not None and hasattr(visual.trunk, "set_input_size"):
                visual.set_input_size(image_size)
            self.width = visual.trunk.num_features
            prefix = getattr(visual.trunk, "num_prefix_tokens", 0)
            pooled = not len(visual.head) and cfg.get("timm_pool") not in ("abs_attn", "rot_attn")
            self.read, self.norm = ("prefix" if prefix else "pooled" if pooled else "mean"), True
        else:
            self.width, self.read, self.norm = 32 * cfg["width"], "mean", False
        self.summary = summary
        if not (summary and self.read == "pooled"):
            self._freeze_pooling()

    def _freeze_pooling(self) -> None:
        """Parts no feature passes through get no gradient, which data parallel training would wait for."""
        names = [n for n in POOLING_PARTS if not (n == "trunk.fc_norm" and self.read == "prefix")]
        if not self.norm:
            names.append("ln_post")
        if self.patches_alone:
            self.visual.class_embedding.requires_grad_(False)
        for name, parameter in self.visual.named_parameters():
            if name.startswith(tuple(f"{n}." for n in names)):
                parameter.requires_grad_(False)

    def _patches(self, images: Tensor) -> Tensor:
        """The grid of a transformer without blocks, which open_clip's own reading of layers does not know."""
        rows = self.visual._embeds(images)[:, 1:]
        rows = self.visual.ln_post(rows) if self.norm else rows
        return rows.transpose(1, 2).unflatten(2, self.visual.grid_size)

    def forward(self, images: Tensor) -> tuple[Tensor | None, Tensor]:
        if self.patches_alone:
            grid = self._patches(images)
            return (grid.mean((2, 3)) if self.summary else None), grid
        pooled = self.summary and self.read == "pooled"
        out = self.visual.forward_intermediates(
            images,
            indices=1,
            normalize_intermediates=self.norm,
            intermediates_only=not pooled,
            output_extra_tokens=self.read == "prefix",
        )
        grid = out["image_intermediates"][-1]
        if not self.summary:
            return None, grid
        if self.read == "prefix":
            return out["image_intermediates_prefix"][-1][:, 0], grid
        return (out["image_features"] if pooled else grid.mean((2, 3))), grid

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the tower's blocks in the backward pass, where the tower supports it."""
        if hasattr(self.visual, "set_grad_checkpointing"):
            self.visual.set_grad_checkpointing(enable)


def load_pretrained(tower: VisionTower, vision: str | Mapping[str, Any], pretrained: str) -> None:
    """Fill ``tower`` from a local open_clip checkpoint (whole model or tower alone) or from a published tag of ``vision``.

    Position embeddings are resized to the tower's image size. Raises ModelError for an unknown tag and CheckpointError
    for a file that does not fit.
    """
    if Path(pretrained).is_file():
        state = load_state_dict(pretrained)
    else:
        tags = open_clip.list_pretrained_tags_by_model(vision) if isinstance(vision, str) else []
        if pretrained not in tags:
            accepted = f"a local file or one of: {', '.join(tags)}" if tags else "a local file"
            raise ModelError(
                f"vision_pretrained {pretrained!r} for {vision!r}{nearest(pretrained, tags)}; accepted: {accepted}"
            )
        state = open_clip.create_model(vision, pretrained=pretrained, force_image_size=tower.image_size).state_dict()
    visual = {k: v for k, v in state.items() if k.startswith("visual.")}
    visual = visual or {f"visual.{k}": v for k, v in state.items()}
    resize_pos_embed(visual, SimpleNamespace(visual=tower.visual))
    own = tower.state_dict()
    wrong = [k for k, v in visual.items() if k in own and v.shape != own[k].shape]
    missing = [k for k in own if k not in visual]
    if wrong or missing:
        detail = (
            f"{wrong[0]} is {list(visual[wrong[0]].shape)}, the tower has {list(own[wrong[0]].shape)}" if wrong else ""
        )
        raise CheckpointError(
            f"{pretrained}: does not fit vision {vision!r}: {detail or f'{len(missing)} weights are missing, first {missing[0]}'}"
        )
    with torch.no_grad():
        tower.load_state_dict({k: v for k, v in visual.items() if k in own})


def _side(size: int | tuple[int, int]) -> int:
    if not isinstance(size, int) and size[0] != size[1]:
        raise ModelError(f"vision image_size {tuple(size)}: frames are square, both sides have to be equal")
    return size if isinstance(size, int) else size[0]
