"""The record of a run: estimates with intervals per task and row, differences, costs, and where it all comes from."""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtskip.errors import DataError
from vtskip.eval import cost, metrics
from vtskip.eval.config import EvalConfig
from vtskip.eval.events import corpus_scores
from vtskip.eval.provenance import provenance
from vtskip.eval.records import SampleRecord
from vtskip.eval.scores import caption_pairs
from vtskip.eval.statistics import Estimate, difference, estimate
from vtskip.eval.tasks import Count

if TYPE_CHECKING:
    from vtskip.data import DataConfig
    from vtskip.data.synthetic.bayes import Known
    from vtskip.eval.sets import TaskSet

Line = Mapping[str, Any]
Lines = Sequence[Line]
POLICIES = {"always_speak": True, "never_speak": False}
TIMING = ("time_diff", "fluency", "miss_rate", "late_rate", "false_trigger_rate", "timing_")


def build_record(
    config: EvalConfig, sets: Sequence["TaskSet"], methods: Mapping[str, dict[str, Any]], lines: Lines
) -> dict[str, Any]:
    """From the finished samples alone; nothing of the model is asked here.

    Without ``tasks`` in the configuration the metrics of the streams also stand at the top (``accuracy``, ``comparison``,
    ``cost``), with the policies that do not look.
    """
    samples = [s for part in sets for s in part.samples]
    model_lines = [line for line in lines if line["row"] == "model"]
    out: dict[str, Any] = {"name": config.name, "model": config.model, "methods": dict(methods)}
    smaller = {row for row, method in methods.items() if "pool" in method}
    tasks = {
        part.task.task: task_record(part, lines, config.seed, smaller) | corpus(part, lines, config.tolerances)
        for part in sets
    }
    if not config.tasks:
        out |= _streams(config, lines, list(methods)) | {"cost": next(iter(tasks.values()))["cost"]}
    skipped = {name: fault for part in sets for name, fault in part.skipped.items()}
    return out | {
        "tasks": tasks,
        "n_samples": len(model_lines),
        "n_videos": len({line["cluster"] for line in model_lines}),
        "n_turns": sum(len(line["turns"]) for line in model_lines if "turns" in line),
        "n_skipped": len(skipped),
        "skipped": [{"name": name, "fault": fault} for name, fault in sorted(skipped.items())],
        "uids_sha256": hashlib.sha256("\n".join(s.uid for s in samples).encode()).hexdigest(),
        "config": config.model_dump(mode="json"),
        "provenance": provenance(config.seed),
    }


def task_record(part: "TaskSet", lines: Lines, seed: int, smaller: Collection[str] = ()) -> dict[str, Any]:
    """One task: all metrics of every row with intervals, and the primary one's paired difference from the model.

    ``smaller``: rows that show fewer tokens per frame; they are measured against the dense model on all of them.
    """
    task = part.task
    mine = [line for line in lines if line["task"] == task.task]
    rows = list(dict.fromkeys(line["row"] for line in mine))
    by_row = {row: [line for line in mine if line["row"] == row] for row in rows}
    clusters = {line["uid"]: line["cluster"] for line in mine}
    flavour, _, metric = task.primary.partition("/")
    against = {
        row: difference(
            counts(by_row["model"], flavour, metric), counts(found, flavour, metric), clusters, seed=seed
        ).as_dict()
        for row, found in by_row.items()
        if row != "model"
    }
    return {
        "version": task.version,
        "evaluator": task.evaluator,
        "primary": task.primary,
        "higher_is_better": task.higher_is_better,
        "shown": task.shown,
        "n_items": len(by_row.get("model", ())),
        "n_clusters": len(set(clusters.values())),
        **ceilings(part),
        "rows": {row: estimates(found, clusters, seed) for row, found in by_row.items()},
        "model_less_row": {task.primary: against},
        "cost": {
            row: cost.summary(costs) | cost.times(costs)
            for row, found in by_row.items()
            if (costs := costs_of(found, by_row["model"] if row in smaller else None))
        },
    }


def ceilings(part: "TaskSet") -> dict[str, Any]:
    """What the best guess gets right on synthetic test clips: with what is shown perfectly recognised (``best``), and without
    seeing (``blind``); flavour/metric -> both. Of all clips that could have been drawn, so that a few may lie above."""
    found = {
        metric: {"best": known.best, "blind": known.blind} for metric, known in _known(part.data, part.task.scores)
    }
    return {"ceilings": found} if found else {}


def _known(data: "DataConfig", scores: str) -> Iterator[tuple[str, "Known"]]:
    from vtskip.data.synthetic.bayes import Known, anticipation_of, ceilings_of

    root = data.root or Path()
    if data.kind == "ego4d_lta" and data.annotations == Path("ego4d/fho_lta_test.json"):
        with suppress(DataError):  # where the folder is no synthetic set
            for name, known in anticipation_of(root, data.seen, data.ahead).items():
                yield f"strict/{name}_accuracy", known
    if (data.kind, data.split) != ("synthetic", "test"):
        return
    every = ceilings_of(root)
    if scores in ("label", "labels"):
        yield "strict/accuracy", every[str(data.task)]
    elif data.task in (None, "narration") and data.passes in (
        None,
        [1],
    ):  # a second annotator's words are drawn at random
        whole = every["narration"]
        if scores == "stream":
            yield "strict/whole_reply", whole
        elif scores == "events":
            yield "strict/exact", Known(100 * whole.best, 100 * whole.blind)


def corpus(part: "TaskSet", lines: Lines, tolerances: Sequence[float]) -> dict[str, Any]:
    """Caption scores over all pairs of a row at once, as published tables give them; nothing for tasks without captions."""
    pairs: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for line in (line for line in lines if line["task"] == part.task.task):
        for flavour, texts in caption_pairs(part.task, line, tolerances).items():
            pairs.setdefault(line["row"], {}).setdefault(flavour, []).extend(texts)
    found = {
        row: {flavour: {"pairs": len(p), **corpus_scores(*(zip(*p) if p else ([], [])))} for flavour, p in by.items()}
        for row, by in pairs.items()
    }
    return {"corpus": found} if found else {}


def costs_of(lines: Lines, dense_from: Lines | None = None) -> list[dict[str, Any]]:
    """The costs that are known; what dense would have cost is taken from the same samples of ``dense_from``."""
    dense = {line["uid"]: line["cost"] for line in dense_from or () if line.get("cost")}
    known = [(line["uid"], line["cost"]) for line in lines if line.get("cost")]
    return [cost | {k: v for k, v in dense.get(uid, {}).items() if k.endswith("_dense")} for uid, cost in known]


def counts(lines: Lines, flavour: str, metric: str) -> dict[str, Count]:
    """uid -> (value, weight) of one metric; items without it weigh nothing."""
    return {line["uid"]: tuple(line["scores"].get(flavour, {}).get(metric, (0.0, 0.0))) for line in lines}


def estimates(lines: Lines, clusters: Mapping[str, str], seed: int) -> dict[str, dict[str, dict[str, Any]]]:
    """flavour -> metric -> estimate, of one row of one task."""
    names: dict[str, dict[str, None]] = {}
    for line in lines:
        for flavour, scores in line["scores"].items():
            names.setdefault(flavour, {}).update(dict.fromkeys(scores))
    return {
        flavour: {metric: _taken(lines, flavour, metric, clusters, seed).as_dict() for metric in metrics_}
        for flavour, metrics_ in names.items()
    }


def _taken(lines: Lines, flavour: str, metric: str, clusters: Mapping[str, str], seed: int) -> Estimate:
    return estimate(counts(lines, flavour, metric), clusters, seed=seed)


# ------------------------------------------------------------------------------------------- streams without a task


def _streams(config: EvalConfig, lines: Lines, rows: Sequence[str]) -> dict[str, Any]:
    records = {row: [SampleRecord.from_dict(dict(line)) for line in lines if line["row"] == row] for row in rows}
    accuracy = {row: flavours(found, config.tolerances) for row, found in records.items()}
    for name, speaks in POLICIES.items():
        policy = [metrics.with_policy(r, speaks) for r in records["model"]]
        accuracy[name] = {
            flavour: {k: v for k, v in values.items() if k.startswith(TIMING)}
            for flavour, values in flavours(policy, config.tolerances).items()
        }
    return {"accuracy": accuracy, "comparison": comparison(accuracy)}


def flavours(records: Sequence[SampleRecord], tolerances: Sequence[float]) -> dict[str, dict[str, float | None]]:
    """Both flavours of all metrics."""
    return {"reference": {**metrics.reference(records)}, "strict": metrics.strict(records, tolerances=tolerances)}


def comparison(accuracy: dict[str, dict[str, dict[str, float | None]]]) -> dict[str, float | None]:
    """The model against the rows that do not look: content correctness as a ratio, TimeDiff (strict) in seconds saved."""
    strict = {row: values["strict"] for row, values in accuracy.items()}
    own = strict["model"]
    out: dict[str, float | None] = {}
    if "blind" in strict:
        blind, right = strict["blind"]["correctness"], own["correctness"]
        out["correctness_over_blind"] = right / blind if right is not None and blind else None
    for name in POLICIES:
        theirs, mine = strict[name]["time_diff"], own["time_diff"]
        out[f"time_diff_saved_against_{name}"] = None if theirs is None or mine is None else theirs - mine
    return out
