"""Recall at k against hand-counted areas, and the rows that are told where to look."""

import json
import shutil

import numpy as np
import pytest

from vtskip.config import parse
from vtskip.data.synthetic.bayes import ceilings_of
from vtskip.errors import ConfigError, DataError
from vtskip.eval import EvalConfig, run
from vtskip.eval.areas import NOWHERE, found, kinds_of, pooled, router_counts, scores_of
from vtskip.eval.sets import task_sets

S, SM, R, RM = range(4)  # static, moving; relevant, relevant and moving


# ------------------------------------------------------------------------------------------------------------ counting


def test_recall_at_k_by_hand():
    """Two frames of a summary row and four cells, two rows kept of each in layer 1, all in layer 0."""
    kinds = np.array([[NOWHERE, RM, R, S, SM], [NOWHERE, S, R, SM, S]], np.uint8)
    kept = np.ones((3, 2, 5), bool)
    kept[1] = [[0, 1, 0, 0, 1], [1, 0, 1, 0, 0]]
    kept[2] = [[0, 1, 1, 0, 0], [0, 1, 1, 0, 0]]
    counts = found(kept, kinds)
    assert counts["cells"] == [3, 2, 2, 1]
    first, second = counts["layers"]
    # relevant: 2 and 1 of the frames; kept of them in layer 1: 1 and 1; by chance 2 * 2/5 + 2 * 1/5
    assert first == {"layer": 1, "hits": 2, "best": 3, "expected": pytest.approx(1.2), "kept": [0, 1, 1, 1]}
    assert (second["layer"], second["hits"], second["best"]) == (2, 3, 3)
    metrics = router_counts(counts)
    assert metrics["recall"] == (5.0, 6.0)
    assert metrics["chance"] == (pytest.approx(2.4), 6.0)
    assert metrics["enrichment"] == (5.0, pytest.approx(2.4))
    assert metrics["static_relevant"] == (3.0, 4.0)
    assert metrics["moving_relevant"] == (2.0, 2.0)
    assert metrics["moving_irrelevant_rejected"] == (3.0, 4.0)
    assert metrics["recall@layer1"] == (2.0, 3.0)


def test_a_model_that_keeps_all_has_no_recall():
    counts = found(np.ones((2, 1, 5), bool), np.zeros((1, 5), np.uint8))
    assert counts["layers"] == []
    assert router_counts(counts) == {}


def test_more_relevant_rows_than_places_is_no_fault():
    counts = found(np.array([[[1, 1, 0, 0]]], bool), np.array([[R, R, R, R]], np.uint8))
    assert router_counts(counts)["recall"] == (2.0, 2.0)
    assert router_counts(counts)["enrichment"] == (2.0, 2.0)


def test_a_coarse_cell_is_what_a_quarter_of_it_is():
    kinds = np.zeros((1, 16, 16), np.uint8)
    kinds[0, :4, :4], kinds[0, :4, 8:12], kinds[0, 8:12, :3], kinds[0, 8:12, 8:12] = R, SM, R, RM
    kinds[0, 4:8, :8] = SM  # a relevant cell whose relevant part is still
    assert pooled(kinds, (2, 2), 5).tolist() == [[NOWHERE, R, SM, S, RM]]
    kinds[0, 8:12, 3] = RM  # three of four parts still, one moving
    kinds[0, 12:, 8:12] = R  # half and half
    assert pooled(kinds, (2, 2), 4).tolist() == [[R, SM, R, RM]]
    assert pooled(kinds[:0], (2, 2), 4).shape == (0, 4)


def test_told_rows_come_first_or_last_and_the_rest_by_chance():
    kinds = np.array([[NOWHERE, RM, S, R, SM]] * 64, np.uint8)
    oracle, anti = scores_of(kinds, True, 0), scores_of(kinds, False, 0)
    assert {tuple(sorted(row)) for row in oracle.topk(2).indices.tolist()} == {(1, 3)}
    assert all(not {1, 3} & set(row) for row in anti.topk(2).indices.tolist())
    assert len({tuple(sorted(row)) for row in anti.topk(2).indices.tolist()}) == 3
    assert scores_of(kinds, True, 0).equal(oracle)
    assert not scores_of(kinds, True, 1).equal(oracle)


# ------------------------------------------------------------------------------------------------------------ in a run


@pytest.fixture
def synthetic(clips, tmp_path, monkeypatch):
    """Data section of a synthetic set over the two clips: what tells is at the top left, what moves at the bottom right."""
    monkeypatch.setattr("vtskip.data.synthetic.make", lambda *a, **k: None)
    shutil.copytree(clips / "videos", tmp_path / "videos")
    (tmp_path / "ego4d").mkdir()
    (tmp_path / "relevance").mkdir()
    shutil.copy(clips / "narration.json", tmp_path / "ego4d/narration.json")
    database = {
        uid: {
            "class": "MakeBread",
            "start": 0.0,
            "end": 4.0,
            "subset": "testing",
            "annotation": [{"id": "1", "segment": [0.0, 2.0], "label": "cut"}],
        }
        for uid in "ab"
    }
    (tmp_path / "coin").mkdir()
    (tmp_path / "coin/COIN.json").write_text(json.dumps({"database": database}))
    (tmp_path / "splits.json").write_text(json.dumps({"test": ["a", "b"]}))
    (tmp_path / "manifest.json").write_text(json.dumps({"recipe": {"grammar": "tasks"}}))
    for uid in "ab":
        areas = [[R, 0, 40, 0.0, 0.0, 0.4, 0.4], [SM, 0, 40, 0.6, 0.6, 1.0, 1.0]]
        (tmp_path / f"relevance/{uid}.json").write_text(json.dumps({"areas": areas, "camera": None}))
    return {"kind": "synthetic", "root": str(tmp_path), "split": "test"}


TASKS = [{"task": "ego4d_narration", "data": {"lead_in": True}}, {"task": "ego4d_narration_rollout"}, "coin_step"]


def test_oracle_and_anti_oracle_at_the_cost_of_the_model(synthetic, checkpoint, tmp_path):
    values = {"model": str(checkpoint), "data": synthetic, "tasks": TASKS, "live_clips": 1, "batch_size": 2}
    values |= {"rows": ["dense", "random", "motion", "oracle", "anti_oracle", "downsample"], "out": str(tmp_path / "o")}
    record = run(parse(EvalConfig, values, "test"))
    assert [record["methods"][row]["by"] for row in ("motion", "oracle", "anti_oracle")] == [
        "motion",
        *values["rows"][3:5],
    ]
    for task in record["tasks"].values():
        rows = task["rows"]
        router = {row: rows[row].get("router", {}) for row in rows}
        assert router["dense"] == router["downsample"] == {}
        assert router["oracle"]["recall"]["value"] == 1.0
        assert router["anti_oracle"]["recall"]["value"] == 0.0
        assert router["oracle"]["static_relevant"]["value"] == 1.0
        # keep 0.4 of CLS and 2 x 2 cells, one of them relevant: two places
        assert router["model"]["chance"]["value"] == pytest.approx(0.4)
        assert 0 <= router["random"]["moving_irrelevant_rejected"]["value"] <= 1
        assert router["oracle"].keys() >= {"recall@layer1", "recall@layer3"}
        assert "recall@layer0" not in router["oracle"]
        for row in ("random", "oracle", "anti_oracle"):
            assert task["cost"][row]["kept_vision"] == pytest.approx(task["cost"]["model"]["kept_vision"])
    known = ceilings_of(tmp_path)
    assert {name: task["ceilings"] for name, task in record["tasks"].items()} == {
        "ego4d_narration": {"strict/whole_reply": {"best": 1.0, "blind": known["narration"].blind}},
        "ego4d_narration_rollout": {"strict/exact": {"best": 100.0, "blind": 100 * known["narration"].blind}},
        "coin_step": {"strict/accuracy": {"best": 1.0, "blind": known["step"].blind}},
    }
    assert 0 < known["step"].blind < 0.2
    for name, metric in (("ego4d_narration", "whole_reply"), ("ego4d_narration_rollout", "exact")):
        assert metric in record["tasks"][name]["rows"]["model"]["strict"]
    lines = [json.loads(line) for line in (tmp_path / "o/samples.jsonl").read_text().splitlines()]
    for line in lines:
        frames = line["cost"]["frames"] if line["cost"] else None  # a batch has one cost
        assert frames is None or sum(line["areas"]["cells"]) == 4 * frames or line["task"] == "coin_step"


def test_what_tells_is_seen_where_it_is(synthetic):
    config = parse(EvalConfig, {"model": "m", "data": synthetic, "tasks": TASKS[:1]}, "test")
    sample = task_sets(config)[0].samples[0]
    kinds = kinds_of(sample)
    assert kinds.shape == (len(sample.frames), 16, 16)
    assert (kinds[:, :6, :6] == R).all()
    assert (kinds[:, 10:, 10:] == SM).all()
    assert (kinds[:, :6, 10:] == S).all()


def test_clips_without_areas_have_no_oracle(synthetic, eval_config, tmp_path):
    with pytest.raises(ConfigError, match=r"'oracle' needs clips whose areas are known"):
        run(parse(EvalConfig, eval_config | {"rows": ["oracle"]}, "test"))
    (tmp_path / "relevance/b.json").unlink()
    values = {"model": eval_config["model"], "data": synthetic, "tasks": TASKS[:1], "rows": []}
    with pytest.raises(DataError, match=r"relevance/b\.json"):
        run(parse(EvalConfig, values, "test"))


def test_other_tasks_of_the_run_leave_the_oracle_out(synthetic, eval_config, coin):
    tasks = [TASKS[0], {"task": "coin_step", "data": coin}]
    values = {"model": eval_config["model"], "data": synthetic, "tasks": tasks, "rows": ["oracle"], "live_clips": 0}
    record = run(parse(EvalConfig, values, "test"))
    assert [list(task["rows"]) for task in record["tasks"].values()] == [["model", "oracle"], ["model"]]
    assert "router" not in record["tasks"]["coin_step"]["rows"]["model"]
