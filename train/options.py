"""Settings of a running training: how samples become batches, what is watched, how ``keep`` is warmed up."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from vtskip.config import StrictModel
from vtskip.schedules import Keep
from vtskip.train.renamed import NAMES

Count = Annotated[int, Field(ge=1)]
BAD_BATCHES = "bad_batches"  # folder in a run's folder: batches whose loss was no number


class Sampling(StrictModel):
    """Which samples share a batch.

    Attributes:
        group: ``length`` puts samples of like length into a batch (less padding), ``modality`` those with videos, with
            still images and with text alone apart. By default all are shuffled together.
        tokens: a batch holds as many samples of like length as fit into so many tokens (vision rows and padding included),
            in place of ``optim.batch_size``: many short ones or few long ones per step.
        prefetch: batches that each loader process makes ahead.
    """

    group: list[Literal["length", "modality"]] = []
    tokens: Count | None = None
    prefetch: Count = 2


class Watch(StrictModel):
    """What is measured beside the loss, every ``log_every`` steps.

    Attributes:
        probe: so many of the shortest samples with frames are looked at, always the same ones, without gradients: how much
            the rows they keep change between two log steps, and how sure the routers are. 0: none.
        pictures_every: in steps; draw which rows of the probe's frames each layer keeps, into ``pictures/``. None: never.
        frames: how many frames a picture shows.
    """

    probe: Annotated[int, Field(ge=0)] = 1
    pictures_every: Count | None = None
    frames: Count = 4


class KeepWarmup(StrictModel):
    """``keep`` goes from ``start`` to the method's own value over the first ``steps`` steps, in every layer that skips.

    The trainer sets it before each step. Saved models and the method's file hold the method's own value.
    """

    steps: Count
    start: Keep = 1.0
    shape: Literal["linear", "cosine"] = "linear"


class Best(StrictModel):
    """Which checkpoint is the best one: it is saved when its score is taken, and kept beside the newest ones.

    Attributes:
        metric: ``loss`` (on ``validation``), or a score of ``evaluation`` as the log names it, without ``eval_``:
            ``ego4d_narration/strict/time_diff``.
        higher_is_better: by default as the task file says of its first metric.
        load: the run's folder gets the best model at the end, in place of the last.
        patience: the run ends when so many scores in a row were no better. None: it takes all its steps.
    """

    renamed: ClassVar[dict[str, str]] = NAMES

    metric: str
    higher_is_better: bool | None = None
    load: bool = False
    patience: Count | None = None
