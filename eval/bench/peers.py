"""Other people's code in the same run, where it runs at all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def why(error: Exception) -> str:
    """The first line of an error, short and without the paths of this machine: the reason why a row is missing."""
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    return re.sub(r" \(/[^)]*\)", "", text)[:200]


@contextmanager
def mixture_of_depth(model: Any) -> Iterator[None]:
    """``model`` as the pip package mixture-of-depth (1.1.8) changes it, and back.

    The package puts wrappers of its own in the place of every other layer. Whatever keeps it from running here (it was
    written for transformers 4) is raised as it comes: the bench writes it down as the reason why the row is missing.
    """
    from MoD import apply_mod_to_hf

    layers, cls, name = model.model.layers, type(model), type(model).__name__
    model.config.architectures = [name]
    try:
        apply_mod_to_hf(model)
        wrapped = [layer for layer in model.model.layers if layer not in list(layers)]
        for layer in wrapped:
            layer.to(next(layers.parameters()).device)
        yield
    finally:
        model.model.layers = nn.ModuleList(layers)
        cls.__name__ = name  # the package renames the class itself, for every model of the process
