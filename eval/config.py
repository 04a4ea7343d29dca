"""Configuration of an evaluation run."""

from typing import Annotated, Literal

from pydantic import Field

from vtskip.config import StrictModel
from vtskip.data import DataConfig
from vtskip.eval.metrics import TOLERANCES
from vtskip.methods import MethodSpec

Row = Literal["blind", "dense", "random", "uniform"]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class EvalConfig(StrictModel):
    """What is evaluated, on what, against what.

    Attributes:
        name: of the run, kept in the record.
        model: checkpoint folder of ``vtskip train``.
        data: the clips.
        method: evaluate with this method instead of the saved one (name, mapping with ``name``, or YAML file).
        rows: comparisons on the same clips. ``blind``: frames zeroed; ``dense``; ``random``, ``uniform``: another choice of
            rows at the same keep ratio and layers, without retraining.
        threshold: of the evaluation; 0 is plain argmax, as in published numbers.
        continuation: which frames follow a silent turn: the published code's window or the ``exact`` next frames.
        tolerances: seconds at which timing precision, recall and F1 are taken.
        max_samples: evaluate only the first so many conversations.
        live_clips: clips played through a live session, for seconds per frame and frames per second.
        live_threshold: threshold of the live session.
        seed: of everything random; kept in the record.
        device, dtype: where and in what precision; auto: the GPU if there is one, the checkpoint's own precision.
        out: folder for ``record.json`` and ``samples.jsonl``; None writes nothing.
    """

    name: str = "eval"
    model: str
    data: DataConfig
    method: MethodSpec | None = None
    rows: tuple[Row, ...] = ("blind",)
    threshold: Probability = 0.0
    continuation: Literal["reference", "exact"] = "reference"
    tolerances: tuple[float, ...] = TOLERANCES
    max_samples: int | None = Field(default=None, ge=1)
    live_clips: int = Field(default=1, ge=0)
    live_threshold: Probability = 0.725
    seed: int = 0
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    out: str | None = None
