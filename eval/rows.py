"""The rows of a table: the model and what it is compared with on the same samples."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtskip.data.files import read_json
from vtskip.errors import ConfigError
from vtskip.eval.guided import Guided
from vtskip.eval.subject import Prompt, StreamSubject
from vtskip.loading import read_config, saved_method
from vtskip.methods import Method, get_method
from vtskip.saving import CONFIG_NAME
from vtskip.streaming.loading import StreamCheckpoint
from vtskip.template import StreamTemplate

PRIORS = ("majority", "bigram")  # rows that answer without a model
ORACLES = ("oracle", "anti_oracle")  # rows that are told which areas matter
COUNTS = ("keep", "schedule", "always_keep")  # what a control has in common with the method it is compared with


@dataclass(frozen=True)
class RowPlan:
    """One row: the method it runs with, and what else differs.

    pool: the smaller grid of ``downsample``. model: the folder of a checkpoint of its own.
    """

    name: str
    method: Method
    pool: tuple[int, int] | None = None
    model: str | None = None

    def as_dict(self) -> dict[str, Any]:
        pool = {} if self.pool is None else {"pool": list(self.pool)}
        return self.method.model_dump(mode="json") | pool | ({} if self.model is None else {"model": self.model})


@contextmanager
def applied(row: RowPlan, checkpoint: StreamCheckpoint) -> Iterator[StreamSubject]:
    """The checkpoint as this row has it."""
    if row.method is not checkpoint.method:
        checkpoint.use(row.method)
    with resampled(checkpoint, row.pool):
        yield StreamSubject(checkpoint, blind=row.name == "blind")


@contextmanager
def resampled(checkpoint: StreamCheckpoint, pool: tuple[int, int] | None) -> Iterator[None]:
    """The checkpoint with a grid of ``pool`` patches per frame; as it is for None."""
    config, template = checkpoint.model.config, checkpoint.template
    own = config.pool
    try:
        if pool is not None:
            config.pool = list(pool)
            checkpoint.template = StreamTemplate.from_config(template.tokenizer, config)
        yield
    finally:
        config.pool, checkpoint.template = own, template


def row_method(row: str, method: Method, seed: int) -> Method:
    """The method a comparison row runs with. Raises ConfigError if ``method`` has no counts that a control could match."""
    if row in ("model", "blind"):
        return method
    if row in ("dense", "downsample"):
        return get_method("dense")
    values = method.model_dump()
    if not {"keep", "schedule"} <= values.keys():
        raise ConfigError(f"rows: {row!r} needs a method with keep and schedule to match, not {method.name!r}")
    counts = {key: values[key] for key in COUNTS if key in values}
    if row in ("motion", *ORACLES):
        return Guided(by=row, seed=seed, **counts)
    return get_method({"name": row} | counts | ({"seed": seed} if row == "random" else {}))


def trained_row(name: str, folder: str, like: Method) -> RowPlan:
    """A row of the checkpoint in ``folder``. Raises ConfigError unless it was trained with random rows at ``like``'s counts."""
    path = Path(folder)
    method = saved_method(read_config(path), path / CONFIG_NAME)
    wanted = row_method("random", like, 0)
    if (method.name, *_counts(method)) != (wanted.name, *_counts(wanted)):
        raise ConfigError(
            f"random_checkpoint {folder}: trained with {method.model_dump(mode='json')}; "
            f"accepted: method 'random' with the model's keep and schedule, {_counts(wanted)}"
        )
    return RowPlan(name, method, model=folder)


def saved_row(name: str, folder: str, pool: list[int] | None) -> RowPlan:
    """A row of the checkpoint in ``folder`` as it was saved. ``pool``: the model's grid; another one is the row's own."""
    path = Path(folder)
    saved = (path / CONFIG_NAME).is_file()
    method = saved_method(read_config(path), path / CONFIG_NAME) if saved else get_method("dense")
    own = read_json(path / "config.json").get("pool")
    return RowPlan(name, method, None if own in (None, pool) else (own[0], own[1]), folder)


def _counts(method: Method) -> tuple[Any, Any]:
    values = method.model_dump(mode="json")
    return values.get("keep"), values.get("schedule")


def plan_rows(
    names: Sequence[str],
    checkpoint: StreamCheckpoint,
    seed: int,
    example: Prompt | None,
    random_checkpoint: str | None = None,
    checkpoints: Mapping[str, str] | None = None,
) -> Mapping[str, RowPlan]:
    """The model, the rows ``names``, and those of other ``checkpoints``.

    ``example``: a whole conversation on which ``downsample`` finds its grid.
    """
    own = checkpoint.method
    plan = {"model": RowPlan("model", own)}
    for name in names:
        if name == "random_trained":
            plan[name] = trained_row(name, str(random_checkpoint), own)
            continue
        method = row_method(name, own, seed)
        pool = equal_cost_grid(checkpoint, plan["model"], example) if name == "downsample" else None
        plan[name] = RowPlan(name, method, pool)
    grid = checkpoint.model.config.pool
    return plan | {name: saved_row(name, folder, grid) for name, folder in (checkpoints or {}).items()}


def equal_cost_grid(checkpoint: StreamCheckpoint, model: RowPlan, example: Prompt | None) -> tuple[int, int]:
    """The smallest grid on which the dense model costs at least the FLOPs of ``model``, measured on ``example``.

    Never cheaper than what it is compared with, so that a loss cannot be put down to a smaller budget. Raises ConfigError
    where frames have no grid.
    """
    own = checkpoint.model.config.pool
    if own is None or example is None:
        raise ConfigError("rows: 'downsample' needs frames with a grid of patches ('pool') to make smaller")
    grids = sorted(((h, w) for h in range(1, own[0] + 1) for w in range(1, own[1] + 1)), key=_by_size)
    with applied(model, checkpoint) as subject:
        budget = flops(subject, example)
    dense = RowPlan("downsample", get_method("dense"))
    try:
        for grid in grids:
            with applied(RowPlan(dense.name, dense.method, grid), checkpoint) as subject:
                if flops(subject, example) >= budget:
                    return grid
    finally:
        checkpoint.use(model.method)
    return grids[-1]


def _by_size(grid: tuple[int, int]) -> tuple[int, int]:
    return grid[0] * grid[1], abs(grid[0] - grid[1])  # of equally many patches the squarest


def flops(subject: StreamSubject, prompt: Prompt) -> int:
    """FLOPs of one pass over a conversation."""
    _, cost = subject.stream_score(prompt, 0.0, "reference")
    return 0 if cost is None else cost["flops_full"]
