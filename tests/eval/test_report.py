"""Reports: tables, paired differences, CSV, JSON, the picture, and records of other kinds."""

import csv
import io
import json
from pathlib import Path

import pytest

from tests.fixtures_stream import run_cli
from vtskip.config import parse
from vtskip.errors import ConfigError, DataError
from vtskip.eval import EvalConfig, run
from vtskip.eval.report import as_csv, cell, load_run, markdown, table

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folders(request, tmp_path_factory):
    """Two runs over the same clips, with and without tasks."""
    checkpoint, coin = request.getfixturevalue("checkpoint"), request.getfixturevalue("coin")
    clips, root = request.getfixturevalue("clips"), tmp_path_factory.mktemp("runs")
    streams = {"kind": "ego4d_narration", "annotations": str(clips / "narration.json"), "videos": str(clips / "videos")}
    common = {"model": str(checkpoint), "live_clips": 0}
    first = {"name": "first", "data": coin, "tasks": ["coin_step", "coin_next"], "rows": ["dense", "majority"]}
    second = first | {"name": "second", "method": {"name": "uniform", "keep": 0.2}, "rows": []}
    third = {"name": "third", "data": streams, "rows": ["blind"]}
    for values in (first, second, third):
        run(parse(EvalConfig, common | values | {"out": str(root / values["name"])}, "test"))
    return root


def test_values_are_the_record_s_and_differences_are_of_the_same_samples(folders):
    runs = [load_run(folders / name) for name in ("first", "second")]
    entries = {(e["run"], e["task"], e["row"]): e for e in table(runs, "dense")}
    record = json.loads((folders / "first/record.json").read_text())
    assert entries["first", "coin_step", "model"]["scores"] == record["tasks"]["coin_step"]["rows"]["model"]
    assert entries["first", "coin_step", "dense"]["difference"] == {}
    for name in ("first", "second"):  # the second run has no dense row of its own
        less = entries[name, "coin_next", "model"]["difference"]["strict/accuracy"]
        values = [
            entries[key]["scores"]["strict"]["accuracy"]["value"]
            for key in ((name, "coin_next", "model"), ("first", "coin_next", "dense"))
        ]
        assert less["value"] == pytest.approx(values[0] - values[1])
        assert (less["items"], less["clusters"]) == (3, 2)
    named = {(e["run"], e["row"]): e for e in table(runs, "first/model") if e["task"] == "coin_step"}
    assert named["first", "model"]["difference"] == {}
    assert named["second", "model"]["difference"]["strict/accuracy"]["items"] == 5


def test_tables_say_n_intervals_and_cost(folders):
    runs = [load_run(folders / "first")]
    text = markdown(runs, table(runs, "dense"), "dense")
    assert "### coin_step" in text
    assert "5 items in 2 clusters" in text
    head = next(line for line in text.splitlines() if line.startswith("| row"))
    names = ["row", "strict/accuracy", "strict/accuracy less dense", "reference/accuracy", "FLOPs ratio", "KV ratio"]
    assert [c.strip() for c in head.strip("|").split("|")] == [*names, "ms to first token"]
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    assert all(line.count("|") == len(names) + 2 for line in lines)
    assert "run" not in head
    both = [load_run(folders / name) for name in ("first", "second")]
    assert "| first | `dense` |" in markdown(both, table(both))


def test_costs_and_routers_stand_below_where_they_are_known(folders):
    runs = [load_run(folders / "first")]
    entries = table(runs)
    assert "| cost |" not in markdown(runs, entries)
    text = markdown(runs, entries, costs=True)
    head = next(line for line in text.splitlines() if line.startswith("| cost"))
    names = [c.strip() for c in head.strip("|").split("|")]
    assert names[:6] == ["cost", "GFLOPs", "FLOPs ratio", "linear FLOPs ratio", "KV MB", "KV ratio"]
    assert names[6:] == ["ms to first token", "95 %", "tokens/s", "peak MB"]
    assert "rows kept" not in text
    known = {"value": 0.5, "low": None, "high": None, "items": 2, "clusters": 1}
    entries[0]["scores"] = entries[0]["scores"] | {"router": {"recall": known, "enrichment": known | {"value": 2.5}}}
    below = next(line for line in markdown(runs, entries).splitlines() if line.startswith("| `model` | 0.500 |"))
    assert below == "| `model` | 0.500 |  | 2.500 |  |  |  |"


def test_a_known_ceiling_is_what_rows_are_measured_by(folders):
    runs = [load_run(folders / "first")]
    entries = [e for e in table(runs) if e["task"] == "coin_next"]
    value = entries[0]["scores"]["strict"]["accuracy"]["value"]
    for entry in entries:
        entry["block"] = entry["block"] | {"ceilings": {"strict/accuracy": {"best": 0.8, "blind": 0.2}}}
    lines = markdown(runs, entries).splitlines()
    assert lines[2].endswith("; ceiling of `strict/accuracy` 0.800, without seeing 0.200")
    assert [c.strip() for c in lines[4].strip("|").split("|")][:3] == ["row", "strict/accuracy", "of ceiling"]
    assert lines[6].split("|")[3].strip() == f"{value / 0.8:.3f}"
    for entry in entries:  # of a metric that does not come first, beside that metric; and where there is nothing to see
        entry["block"] = entry["block"] | {"ceilings": {"reference/accuracy": {"best": 0.8, "blind": 0.79}}}
    lines = markdown(runs, entries, "dense").splitlines()
    assert lines[2].endswith("; ceiling of `reference/accuracy` 0.800, without seeing 0.790: the pictures do not tell")
    names = [c.strip() for c in lines[4].strip("|").split("|")][1:5]
    assert names == ["strict/accuracy", "strict/accuracy less dense", "reference/accuracy", "of ceiling"]
    assert all(line.count("|") == lines[4].count("|") for line in lines[5:9])


def test_cells():
    estimate = {"value": 0.64, "low": 0.5711, "high": 0.7, "items": 3, "clusters": 2}
    assert cell(estimate) == "0.640 [0.571, 0.700]"
    assert cell(estimate | {"value": -0.1, "low": -0.2, "high": 0.1}, signed=True) == "-0.100 [-0.200, +0.100]"
    assert cell(estimate | {"low": None}) == "0.640"
    assert cell(estimate | {"value": None}) == ""


def test_csv_has_a_line_per_metric(folders):
    entries = table([load_run(folders / "first"), load_run(folders / "third")], None)
    rows = list(csv.DictReader(io.StringIO(as_csv(entries))))
    metrics = sum(len(m) for e in entries for m in e["scores"].values())
    assert len(rows) == metrics
    model = next(r for r in rows if (r["run"], r["row"], r["metric"]) == ("third", "model", "strict/time_diff"))
    assert float(model["value"]) >= 0
    assert 0 < float(model["flops_ratio"]) < 1
    assert model["difference"] == ""


def test_command_writes_tables_and_a_picture(folders, tmp_path):
    result = run_cli("report", folders / "first", folders / "third", "--against", "model",
                     "--csv", tmp_path / "r.csv", "--picture", tmp_path / "r.png")  # fmt: skip
    assert result.code == 0, result.err
    assert "### streams" in result.out
    assert (tmp_path / "r.csv").read_text().startswith("run,task,row,metric,value")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    printed = run_cli("report", folders / "first", "--json")
    assert {entry["row"] for entry in json.loads(printed.out)} == {"model", "dense", "majority"}


def test_older_records_are_tables_without_intervals():
    runs = [load_run(ROOT / "eval/records/demo.json")]
    text = markdown(runs, table(runs))
    assert "| `model` |" in text
    assert "| `dense` |" in text


def test_what_cannot_be_reported_says_why(folders, tmp_path):
    first = load_run(folders / "first")
    with pytest.raises(ConfigError, match="did you mean 'dense'"):
        table([first], "dens")
    with pytest.raises(ConfigError, match="two runs are called 'first'"):
        table([first, first])
    with pytest.raises(ConfigError, match="not the record of an evaluation"):
        load_run(ROOT / "eval/records/bench_cpu.json")
    with pytest.raises(DataError, match="nowhere"):
        load_run(tmp_path / "nowhere")
    (tmp_path / "record.json").write_text((folders / "first/record.json").read_text())
    with pytest.raises(DataError, match=r"no samples of task 'coin_step' in common.*samples\.jsonl"):
        table([load_run(tmp_path)], "dense")


def test_the_picture_tells_rows_apart_and_shows_no_values_that_cannot_be():
    """Rows of one score and cost stand beside each other, no two look alike, and axes of shares do not go below zero."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from vtskip.eval.picture import _panel, _styles

    block = {"primary": "strict/time_diff", "higher_is_better": False, "n_items": 3, "n_clusters": 2}
    block["ceilings"] = {"strict/time_diff": {"best": 0.5, "blind": 0.1}}
    estimate = {"value": 0.0, "low": 0.0, "high": 0.0, "items": 3, "clusters": 2}
    names = ["model", "blind", "dense", "random", "uniform", "motion", "oracle", "anti_oracle", "downsample"]
    entries = [
        {"run": "a", "task": "t", "row": row, "block": block, "scores": {"strict": {"time_diff": estimate}}}
        | {"cost": {} if row in ("majority", "bigram") else {"flops_ratio": 0.7}}
        for row in [*names, "majority", "bigram"]
    ]
    styles = _styles(entries)
    assert len({(colour, mark) for _, colour, mark in styles.values()}) == len(entries)
    figure = Figure()
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shown = _panel(axes, entries, styles)
    assert [*shown][-1] == "ceiling" and len(shown) == len(entries) + 1
    places = [float(shown[name].get_xdata()[0]) for name in names]
    assert len(set(places)) == len(names) and max(places) - min(places) < 0.1
    assert axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > 0.5
    assert axes.get_ylabel() == "strict/time_diff, seconds\n(lower is better)"
    assert shown["majority"].get_linestyle() != shown["bigram"].get_linestyle()
