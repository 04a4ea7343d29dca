"""How the tiles of an image lie, noted while it is encoded: ``generate`` keeps the features, but not the sizes in pixels."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from vtskip.models.families import Family

PACKS = "pack_image_features"


class ViewWatch:
    """Notes the views of images with the output of the tower that encodes them, from the call that joins their tiles."""

    def __init__(self, base: nn.Module, family: Family):
        self.base, self.family = base, family
        self.output: Any = None

    def encoded(self, tower: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forward hook of the tower."""
        self.output = None if isinstance(output, tuple) else output

    def remove(self) -> None:
        self.base.__dict__.pop(PACKS, None)


def pack(watch: ViewWatch, image_features: Any, image_sizes: Any, *args: Any, **kwargs: Any) -> Any:
    """What ``base`` joins tiles with while it is watched."""
    output, watch.output = watch.output, None
    if output is not None:
        assert watch.family.views is not None
        output.views = watch.family.views(image_sizes, watch.base.config)
    return getattr(type(watch.base), PACKS)(watch.base, image_features, image_sizes, *args, **kwargs)


def watch_views(base: nn.Module, family: Family) -> list[Any]:
    """Have ``base``, the module that holds the tower, note the views. Returns what takes it off again."""
    watch = ViewWatch(base, family)
    base.__dict__[PACKS] = functools.partial(pack, watch)
    return [watch, base.vision_tower.register_forward_hook(watch.encoded)]
