"""The configuration of ``vtskip calibrate``."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from vtskip.calibrate.contribution import Direction
from vtskip.calibrate.prompts import End
from vtskip.config import StrictModel
from vtskip.data.config import DataConfig

DEFAULT_RULE = {"quantile": 0.6}


class Choose(StrictModel):
    """Which layers skip: those with the lowest mean score, by exactly one rule.

    Attributes:
        count: so many layers.
        quantile: the layers at or below this quantile of all layers' scores; 0.6 is ShortV's 19 of 32 and 24 of 40.
        threshold: the layers below this score; for ``arank`` a share of the prompt's length.
        rank: ``arank`` only, the layers below this rank. The paper's 110 holds for its prompts of about 1,100 rows.
    """

    count: int | None = Field(default=None, ge=0)
    quantile: float | None = Field(default=None, ge=0, le=1)
    threshold: float | None = None
    rank: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _one(self) -> "Choose":
        given = sorted(self.rule)
        if len(given) != 1:
            raise ValueError(
                f"exactly one of count, quantile, threshold, rank; given: {', '.join(given) or 'none'}; "
                "to exchange the rule of a file write choose='{count: 19}'"
            )
        return self

    @property
    def rule(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)


class CalibrateConfig(StrictModel):
    """One calibration.

    Attributes:
        model: folder of a StreamingLlava checkpoint, or its id on the hub. A method saved with it is taken off first.
        data: the clips. Without ``split`` it is ``train``, where the data have splits; prompts from a test split leak
            what is tested into the choice of layers.
        prompts: how many; each is a conversation up to a reply, drawn without replacement.
        end: where in the reply a prompt ends. ``start``, as published: what is scored is its first word. ``inside``: before
            a drawn token of it, for narrations that all begin with the same word.
        seed: of the draw.
        score: ``layer_contribution`` (ShortV) or ``arank`` (gamma-MoD).
        direction: of Layer Contribution: ``altered`` is KL(altered || original) as released, ``original`` the paper's.
        choose: which layers skip; ``{quantile: 0.6}`` by default. May change between runs into the same folder, where the
            kept scores still hold.
        device, dtype: where and in what precision; auto: the GPU if there is one, the checkpoint's own precision.
        out: folder of scores.json, calibration.json, calibration.png and method.yaml.
    """

    model: str
    data: DataConfig
    prompts: int = Field(default=40, ge=1)
    end: End = "start"
    seed: int = Field(default=0, ge=0)
    score: Literal["layer_contribution", "arank"] = "layer_contribution"
    direction: Direction = "altered"
    choose: Choose | None = None
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    out: Path

    @model_validator(mode="after")
    def _fits_score(self) -> "CalibrateConfig":
        if self.score == "arank" and "direction" in self.model_fields_set:
            raise ValueError("'direction' belongs to score layer_contribution: leave it out for arank")
        if self.score != "arank" and "rank" in self.rule:
            raise ValueError("choose.rank belongs to score arank; accepted here: count, quantile, threshold")
        return self

    @property
    def rule(self) -> dict[str, Any]:
        """Keyword arguments of ``LayerScores.layers``."""
        return DEFAULT_RULE if self.choose is None else self.choose.rule

    @property
    def clips(self) -> DataConfig:
        """The data with their split filled in."""
        unsplit = self.data.kind == "ego4d_narration" and self.data.splits is None
        return self.data if unsplit or self.data.split else self.data.model_copy(update={"split": "train"})
