"""Which layers skip, and what fraction of the vision rows each of them keeps."""

import math
from typing import Annotated, Literal

from pydantic import Field, field_validator

from vtskip.config import StrictModel
from vtskip.errors import ConfigError

Keep = Annotated[float, Field(gt=0.0, le=1.0, description="fraction of vision rows kept; 1.0 is dense")]


class Constant(StrictModel):
    """Every layer from ``first`` up to, not including, ``stop``: a slice, so negative numbers count from the end."""

    kind: Literal["constant"] = "constant"
    keep: Keep | None = None
    first: int = 0
    stop: int | None = None

    def resolve(self, layers: int, keep: float) -> list[float | None]:
        chosen = range(layers)[self.first : self.stop]
        return [(self.keep or keep) if i in chosen else None for i in range(layers)]


class Interleaved(StrictModel):
    """Every ``step``-th layer from ``first``: 1, 3, 5, ... (VideoLLM-MoD's ``mod``)."""

    kind: Literal["interleaved"] = "interleaved"
    keep: Keep | None = None
    first: int = Field(1, ge=0)
    step: int = Field(2, ge=1)

    def resolve(self, layers: int, keep: float) -> list[float | None]:
        return [
            (self.keep or keep) if i >= self.first and (i - self.first) % self.step == 0 else None
            for i in range(layers)
        ]


class Listed(StrictModel):
    """The layers by number, with one ``keep`` for all or one each."""

    kind: Literal["list"] = "list"
    layers: list[int]
    keep: list[Keep] | Keep | None = None

    @field_validator("layers")
    @classmethod
    def _distinct(cls, layers: list[int]) -> list[int]:
        if len(set(layers)) != len(layers) or any(i < 0 for i in layers):
            raise ValueError("layers must be distinct numbers from 0")
        return layers

    def resolve(self, layers: int, keep: float) -> list[float | None]:
        check_layers(self.layers, layers)
        per_layer = self.keep if isinstance(self.keep, list) else [self.keep or keep] * len(self.layers)
        if len(per_layer) != len(self.layers):
            raise ConfigError(f"schedule: {len(self.layers)} layers but {len(per_layer)} values of keep")
        table = dict(zip(self.layers, per_layer))
        return [table.get(i) for i in range(layers)]


class ShiftedCosine(StrictModel):
    """p-MoD's progressive ratio decay: ``R = 0.5 cos(pi l / last) + shift`` (or ``0.5 - l / last + shift``).

    Layers with ``R`` above ``max_keep`` are dense; the others keep ``max(R, min_keep)``.

    Attributes:
        last: the layer at which the decay ends; None is the last layer, L - 1. The released code has 31 for every depth,
            which lets the cosine rise again in deeper models.
    """

    kind: Literal["shifted_cosine"] = "shifted_cosine"
    decay: Literal["cosine", "linear"] = "cosine"
    shift: float = 0.5
    max_keep: Keep = 0.85
    min_keep: Keep = 0.15
    last: int | None = Field(None, ge=1)

    def raw(self, layer: int, layers: int) -> float:
        part = layer / (self.last or max(layers - 1, 1))
        return (0.5 * math.cos(math.pi * part) if self.decay == "cosine" else 0.5 - part) + self.shift

    def resolve(self, layers: int, keep: float) -> list[float | None]:
        ratios = [self.raw(i, layers) for i in range(layers)]
        return [max(r, self.min_keep) if r <= self.max_keep else None for r in ratios]


def check_layers(listed: list[int], layers: int) -> None:
    """Raises ConfigError for a layer number the model does not have."""
    outside = [i for i in listed if not 0 <= i < layers]
    if outside:
        raise ConfigError(f"layers {outside} do not exist: the model has layers 0 to {layers - 1}")


Schedule = Annotated[Constant | Interleaved | Listed | ShiftedCosine, Field(discriminator="kind")]
