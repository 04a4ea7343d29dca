"""Records of one or more runs side by side: tables with intervals, paired differences, CSV."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtskip.data.files import parse_json, read_json, read_lines
from vtskip.errors import ConfigError, DataError, nearest
from vtskip.eval.record import counts
from vtskip.eval.report_tables import NONE, cell, cost_table, lines_of, names_of, router_table
from vtskip.eval.statistics import difference

COSTS = {  # column -> key of a cost block, factor
    "FLOPs ratio": ("flops_ratio", 1),
    "KV ratio": ("kv_ratio", 1),
    "ms/frame": ("seconds_per_frame_p50", 1000),
    "ms to first token": ("first_token_seconds_p50", 1000),
}
TELLING = 0.05  # of a ceiling: a question that seeing helps with by less is not about the pictures
OF_STREAMS = ("strict/time_diff", "strict/fluency", "strict/correctness", "reference/lm_ppl")  # of older records


@dataclass
class Run:
    """One evaluation: its record, and the scores of its samples (none where only the record is there)."""

    name: str
    tasks: Mapping[str, Mapping[str, Any]]
    lines: Sequence[Mapping[str, Any]]
    seed: int
    skipped: int


def load_run(path: Path) -> Run:
    """From the folder of a run or its ``record.json``. Raises DataError, ConfigError for what is no evaluation record."""
    file = path / "record.json" if path.is_dir() else path
    record = read_json(file)
    if not isinstance(record, dict) or not ("tasks" in record or "accuracy" in record):
        raise ConfigError(f"{file}: not the record of an evaluation (no 'tasks' and no 'accuracy')")
    samples = file.parent / "samples.jsonl"
    lines = []
    if file.name == "record.json" and samples.is_file():
        lines = [parse_json(text, f"{samples}: line {number}") for number, text in read_lines(samples)]
        lines = [line for line in lines if "scores" in line]
    tasks = record.get("tasks") or {"streams": older(record)}
    seed = record.get("config", {}).get("seed", 0)
    return Run(str(record.get("name", file.stem)), tasks, lines, seed, record.get("n_skipped", 0))


def older(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without tasks: its metrics have no intervals."""
    rows = {
        row: {f: {m: NONE | {"value": v} for m, v in metrics.items()} for f, metrics in flavours.items()}
        for row, flavours in record["accuracy"].items()
    }
    counted = {"n_items": record.get("n_samples", 0), "n_clusters": record.get("n_videos", 0)}
    shown = {"primary": OF_STREAMS[0], "higher_is_better": False, "shown": list(OF_STREAMS)}
    return {"rows": rows, "cost": record.get("cost", {}), **counted, **shown}


def table(runs: Sequence[Run], against: str | None = None) -> list[dict[str, Any]]:
    """One entry per run, task and row: estimates, costs and, with ``against``, the paired difference of every metric.

    ``against`` is a row, of the same run where that has it, else of the first run that does; or ``RUN/ROW``.
    """
    names = [run.name for run in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"two runs are called {twice!r}; give them a 'name' each, so that the report can tell them apart"
        )
    found = []
    for run in runs:
        for task, block in run.tasks.items():
            for row, scores in block["rows"].items():
                entry = {"run": run.name, "task": task, "row": row, "scores": scores, "block": block}
                entry |= {"cost": block["cost"].get(row, {}), "difference": {}}
                if against is not None:
                    entry["difference"] = _differences(runs, run, task, row, against)
                found.append(entry)
    return found


def _differences(runs: Sequence[Run], run: Run, task: str, row: str, against: str) -> dict[str, dict[str, Any]]:
    """flavour/metric -> estimate of this row less the one it is compared with; empty for that row itself."""
    other = _base(runs, run, task, against)
    base_row = against.rpartition("/")[2]
    if other is None or (other is run and row == base_row):
        return {}
    ours, theirs = (_of(r.lines, task, name) for r, name in ((run, row), (other, base_row)))
    shared = ours.keys() & theirs.keys()
    if not shared:
        raise DataError(
            f"runs {run.name!r} and {other.name!r}: no samples of task {task!r} in common with rows {row!r} and {base_row!r}; "
            "a paired difference needs the samples.jsonl of both"
        )
    clusters = {uid: line["cluster"] for uid, line in ours.items()}
    first = next(iter(ours.values()))["scores"]
    out = {}
    for flavour, metric in ((f, m) for f, metrics in first.items() for m in metrics):
        here, there = (counts([side[uid] for uid in shared], flavour, metric) for side in (ours, theirs))
        out[f"{flavour}/{metric}"] = difference(here, there, clusters, seed=run.seed).as_dict()
    return out


def _base(runs: Sequence[Run], run: Run, task: str, against: str) -> Run | None:
    """The run whose row is compared with; None where no run has that row for this task."""
    name, _, row = against.rpartition("/")
    rows = sorted({r for other in runs for block in other.tasks.values() for r in block["rows"]})
    if row not in rows or (name and name not in [r.name for r in runs]):
        accepted = rows if len(runs) == 1 else [*rows, "RUN/ROW"]
        raise ConfigError(f"--against {against!r}{nearest(against, accepted)}; accepted: {', '.join(accepted)}")
    first = [r for r in runs if r.name == name] if name else [run, *runs]
    return next((r for r in first if row in r.tasks.get(task, {}).get("rows", {})), None)


def _of(lines: Sequence[Mapping[str, Any]], task: str, row: str) -> dict[str, Mapping[str, Any]]:
    return {line["uid"]: line for line in lines if (line["task"], line["row"]) == (task, row)}


def shown(block: Mapping[str, Any]) -> list[str]:
    """flavour/metric of the columns of a task, the primary one first."""
    return list(dict.fromkeys([block["primary"], *block.get("shown", [])]))


def markdown(
    runs: Sequence[Run], entries: Sequence[Mapping[str, Any]], against: str | None = None, costs: bool = False
) -> str:
    """A table per task: metrics with 95 % intervals, difference of the primary one, cost; n stands in the heading.

    Below it what the routers keep, where that is known, and with ``costs`` everything that was counted and timed.
    """
    parts, several = [], len(runs) > 1
    for task in dict.fromkeys(entry["task"] for entry in entries):
        mine = [entry for entry in entries if entry["task"] == task]
        parts += [f"### {task}", "", _sizes(mine), "", *_lines(mine, several, against), *router_table(mine, several)]
        parts += [*(cost_table(mine, several) if costs else []), ""]
    for run in runs:
        if run.skipped:
            parts.append(f"{run.name}: {run.skipped} clips could not be read and are left out.")
    return "\n".join(parts).rstrip() + "\n"


def _sizes(entries: Sequence[Mapping[str, Any]]) -> str:
    block = entries[0]["block"]
    better = "higher" if block["higher_is_better"] else "lower"
    sizes = {e["run"]: f"{e['block']['n_items']} items in {e['block']['n_clusters']} clusters" for e in entries}
    counted = (
        next(iter(sizes.values()))
        if len(set(sizes.values())) == 1
        else "; ".join(f"{r}: {n}" for r, n in sizes.items())
    )
    measured = any(estimate_of(e, block["primary"])["low"] is not None for e in entries)
    interval = "; [95 % interval, bootstrap over clusters]" if measured else ""
    best = "".join(_ceiling(metric, block) for metric in shown(block))
    return f"{counted}; `{block['primary']}`, {better} is better{interval}{best}"


def _ceiling(metric: str, block: Mapping[str, Any]) -> str:
    known = block.get("ceilings", {}).get(metric)
    if not known:
        return ""
    idle = ": the pictures do not tell" if known["best"] - known["blind"] < TELLING * known["best"] else ""
    return f"; ceiling of `{metric}` {known['best']:.3f}, without seeing {known['blind']:.3f}{idle}"


def _lines(entries: Sequence[Mapping[str, Any]], several: bool, against: str | None) -> list[str]:
    block = entries[0]["block"]
    metrics, ceilings = shown(block), block.get("ceilings", {})
    costs = [name for name, (key, _) in COSTS.items() if any(key in e["cost"] for e in entries)]
    head = [*(["run"] if several else []), "row"]
    for metric in metrics:
        head += [metric, *(["of ceiling"] if metric in ceilings else [])]
        head += [f"{metric} less {against}"] if against and metric == metrics[0] else []
    rows = []
    for entry in entries:
        cells = names_of(entry, several)
        for metric in metrics:
            value = estimate_of(entry, metric)
            cells.append(cell(value))
            if metric in ceilings:
                cells.append("" if value["value"] is None else f"{value['value'] / ceilings[metric]['best']:.3f}")
            if against is not None and metric == metrics[0]:
                cells.append(cell(entry["difference"].get(metric, NONE), signed=True))
        for key, factor in (COSTS[name] for name in costs):
            cells.append(f"{entry['cost'][key] * factor:.3f}" if key in entry["cost"] else "")
        rows.append(cells)
    return lines_of([*head, *costs], rows)


def estimate_of(entry: Mapping[str, Any], metric: str) -> Mapping[str, Any]:
    flavour, _, name = metric.partition("/")
    return entry["scores"].get(flavour, {}).get(name, NONE)


def as_csv(entries: Sequence[Mapping[str, Any]]) -> str:
    """One line per run, task, row and metric, with its interval, its difference and the row's cost."""
    keys = list(dict.fromkeys(k for e in entries for k, v in e["cost"].items() if isinstance(v, int | float)))
    head = ["run", "task", "row", "metric", "value", "low", "high", "items", "clusters"]
    head += ["difference", "difference_low", "difference_high", *keys]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for entry in entries:
        for flavour, metrics in entry["scores"].items():
            for name, value in metrics.items():
                less = entry["difference"].get(f"{flavour}/{name}", NONE)
                estimate = [value[k] for k in ("value", "low", "high", "items", "clusters")]
                cost = [entry["cost"].get(k) for k in keys]
                names = [entry["run"], entry["task"], entry["row"], f"{flavour}/{name}"]
                writer.writerow([*names, *estimate, *(less[k] for k in ("value", "low", "high")), *cost])
    return out.getvalue()


def as_json(entries: Sequence[Mapping[str, Any]]) -> str:
    rows = [{k: v for k, v in e.items() if k != "block"} | {"primary": e["block"]["primary"]} for e in entries]
    return json.dumps(rows, indent=1, allow_nan=False)
