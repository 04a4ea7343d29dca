"""Dense: no layer is touched. The baseline, and the zero of every comparison."""

from typing import ClassVar, Literal

from vtskip.methods.base import Method
from vtskip.plan import DecoderShape


class Dense(Method):
    """Every row runs through every layer."""

    skips: ClassVar[str] = "nothing"

    name: Literal["dense"] = "dense"

    def planner(self, layer: int, shape: DecoderShape) -> None:
        return None
