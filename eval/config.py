"""Configuration of an evaluation run."""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from vtskip.config import StrictModel
from vtskip.data import DataConfig
from vtskip.eval.metrics import TOLERANCES
from vtskip.eval.tasks import Caption, ClosedSet
from vtskip.methods import MethodSpec

Row = Literal[
    "blind",
    "dense",
    "random",
    "random_trained",
    "uniform",
    "downsample",
    "motion",
    "oracle",
    "anti_oracle",
    "majority",
    "bigram",
]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class TaskRun(StrictModel):
    """A task by name with the keys of its data section that differ from the run's.

    With a ``kind`` of its own the section stands alone and takes only ``root`` from the run's. ``closed_set``: other labels
    than the task's own choice (``vtskip.eval.tasks.Task``). ``prior``: keys of the data section that make the samples in which
    ``majority`` and ``bigram`` count, where those are another file and not ``prior_split``.
    """

    task: str
    data: dict[str, Any] = {}
    closed_set: ClosedSet | None = None
    prior: dict[str, Any] = {}
    max_samples: int | None = Field(default=None, ge=1)


class EvalConfig(StrictModel):
    """What is evaluated, on what, against what.

    Attributes:
        name: of the run, kept in the record.
        model: checkpoint folder of ``vtskip train``.
        data: the clips. Tasks set the keys that make them (``vtskip.eval.tasks``).
        tasks: names of tasks, or mappings with ``task`` and ``data``; without any the streams of ``data`` are scored.
        include_path: folders with further task files.
        method: evaluate with this method instead of the saved one (name, mapping with ``name``, or YAML file).
        rows: comparisons on the same clips. ``blind``: frames zeroed; ``dense``; ``random``, ``uniform``, ``motion``: another
            choice of rows at the same keep ratio and layers, without retraining; ``oracle``, ``anti_oracle``: the same counts
            of the rows that are known to tell what is done, or of the others (synthetic clips alone);
            ``random_trained``: the model of ``random_checkpoint``;
            ``downsample``: all layers on fewer, larger patches, the smallest grid that costs at least as much;
            ``majority``, ``bigram``: the most frequent answer of ``prior_split``, and the one that most often follows the
            step in view, without a model.
        random_checkpoint: a model that was trained with random rows at the same counts: what a router has to beat. ``random``
            alone shows how much a model suffers that was trained with other rows.
        checkpoints: further rows, by a name of one's own: the folder of another model, which runs as it was saved, with its own
            method and its own grid of patches, on frames of the same size.
        prior_split: split that the answers of ``majority`` and ``bigram`` are counted in; tasks whose data have no lists of
            splits are left out of these rows, unless they say where (``prior``).
        threshold: of the evaluation; 0 is plain argmax, as in published numbers.
        continuation: which frames follow a silent turn: the published code's window or the ``exact`` next frames.
        tolerances: seconds at which timing precision, recall and F1 are taken.
        captions: further scores of free texts, for every task that has any: ``rouge_l`` (needs rouge-score).
        max_samples: evaluate only the first so many conversations of every task.
        batch_size: questions that are answered at once; streams are scored one by one.
        live_clips: clips played through a live session, for seconds per frame and frames per second.
        live_threshold: threshold of the live session and of rollouts.
        on_error: ``skip`` leaves out clips that cannot be read and names them in the record.
        seed: of everything random; kept in the record.
        device, dtype: where and in what precision; auto: the GPU if there is one, the checkpoint's own precision.
        out: folder for ``record.json`` and ``samples.jsonl``; None writes nothing.
    """

    name: str = "eval"
    model: str
    data: DataConfig | None = None
    tasks: list[str | TaskRun] = []
    include_path: list[str] = []
    method: MethodSpec | None = None
    rows: tuple[Row, ...] = ("blind",)
    random_checkpoint: str | None = None
    checkpoints: dict[str, str] = {}
    prior_split: str = "train"
    threshold: Probability = 0.0
    continuation: Literal["reference", "exact"] = "reference"
    tolerances: tuple[float, ...] = TOLERANCES
    captions: list[Caption] = []
    max_samples: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=1, ge=1)
    live_clips: int = Field(default=1, ge=0)
    live_threshold: Probability = 0.725
    on_error: Literal["stop", "skip"] = "stop"
    seed: int = 0
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    out: str | None = None

    @model_validator(mode="after")
    def _has_data(self) -> "EvalConfig":
        if "random_trained" in self.rows and self.random_checkpoint is None:
            raise ValueError("row 'random_trained' needs 'random_checkpoint', a model trained with random rows")
        if taken := sorted({*self.checkpoints} & {"model", *get_args(Row)}):
            raise ValueError(f"checkpoints: {taken[0]!r} is a row already; accepted: any other name")
        if self.data is None and not (self.tasks and all("kind" in run.data for run in self.runs)):
            raise ValueError("'data' is missing, and not every task has a data section with a 'kind' of its own")
        return self

    @property
    def runs(self) -> list[TaskRun]:
        """The tasks, all as mappings."""
        return [TaskRun(task=run) if isinstance(run, str) else run for run in self.tasks]
