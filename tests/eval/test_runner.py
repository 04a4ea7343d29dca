"""The runner on a tiny checkpoint and real mp4 files: what the record holds, that it repeats, and what it refuses."""

import json
import math

import pytest

from vtskip.config import parse
from vtskip.errors import CheckpointError, ConfigError, DataError
from vtskip.eval import EvalConfig, metrics, run
from vtskip.eval.records import SampleRecord
from vtskip.eval.rows import row_method
from vtskip.methods import get_method

MODEL_ROWS = ["model", "blind", "dense", "random", "uniform"]


def configured(values, **changes):
    return parse(EvalConfig, values | changes, "test")


@pytest.fixture(scope="module")
def outcome(request, tmp_path_factory):
    """One run of all rows, shared by the tests that only read it."""
    checkpoint, clips = request.getfixturevalue("checkpoint"), request.getfixturevalue("clips")
    data = {"kind": "ego4d_narration", "annotations": str(clips / "narration.json"), "videos": str(clips / "videos")}
    out = tmp_path_factory.mktemp("out")
    values = {"model": str(checkpoint), "data": data, "rows": MODEL_ROWS[1:], "out": str(out), "live_clips": 1}
    steps = []
    record = run(configured(values), lambda *step: steps.append(step))
    return record, out, steps


def test_record_has_accuracy_cost_and_provenance(outcome):
    record, out, steps = outcome
    assert json.loads((out / "record.json").read_text()) == json.loads(json.dumps(record))
    assert list(record["accuracy"]) == [*MODEL_ROWS, "always_speak", "never_speak"]
    assert (record["n_samples"], record["n_videos"], record["n_turns"]) == (2, 2, 3)
    assert steps == [(row, k, 2) for row in MODEL_ROWS for k in (1, 2)]
    for row in MODEL_ROWS:
        assert record["accuracy"][row]["reference"]["lm_ppl"] > 1
        assert 0 <= record["accuracy"][row]["strict"]["fluency"] <= 1
    assert set(record["accuracy"]["always_speak"]["strict"]) >= {"time_diff", "fluency", "timing_f1@1"}
    assert "lm_ppl" not in record["accuracy"]["always_speak"]["reference"]
    facts = record["provenance"]
    assert facts["versions"]["torch"]
    assert facts["machine"]["cores"] >= 1
    assert facts["git"] is None or len(facts["git"]["commit"]) == 40
    assert record["config"]["rows"] == MODEL_ROWS[1:]
    assert record["peak_memory_bytes"] > 1e6


def test_costs_are_those_of_the_method(outcome):
    cost = outcome[0]["cost"]
    assert cost["dense"]["flops_ratio"] == cost["dense"]["kv_ratio"] == 1.0
    assert cost["dense"]["kept_vision"] == [1.0] * 4
    assert cost["model"]["kept_vision"] == pytest.approx([1.0, 0.4, 1.0, 0.4])
    assert cost["model"]["flops_ratio"] < 1
    assert cost["model"]["kv_ratio"] < 1
    for control in ("random", "uniform", "blind"):  # equal counts; what is attended to differs by position only
        assert cost[control]["kept_vision"] == pytest.approx(cost["model"]["kept_vision"])
        assert cost[control]["kv_bytes"] == cost["model"]["kv_bytes"]
        assert cost[control]["flops_linear"] == cost["model"]["flops_linear"]
    assert cost["model"]["frames_per_second"] > 0
    assert cost["model"]["seconds_per_frame_p50"] <= cost["model"]["seconds_per_frame_p95"]
    assert all(row["peak_memory_bytes"] > 1e6 for row in cost.values())
    assert outcome[0]["peak_memory_bytes"] >= max(row["peak_memory_bytes"] for row in cost.values())


def test_policies_come_from_the_same_records(outcome):
    record, out, _ = outcome
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [r["row"] for r in rows] == [row for row in MODEL_ROWS for _ in range(2)]
    own = [SampleRecord.from_dict(r) for r in rows if r["row"] == "model"]
    assert {**metrics.reference(own)} == record["accuracy"]["model"]["reference"]
    # texts at 1 s, 2.5 s and 2 s; a video starts at its first text, so only the second one has learned frames before it
    assert [t.T for r in own for t in r.turns] == [0, 3, 0]
    assert record["accuracy"]["always_speak"]["strict"]["time_diff"] == 1.0
    assert record["accuracy"]["never_speak"]["strict"]["time_diff"] == 0.5
    assert record["accuracy"]["never_speak"]["reference"]["time_diff"] == 0.0


def test_rows_differ_where_they_should(outcome):
    ppl = {row: outcome[0]["accuracy"][row]["reference"]["lm_ppl"] for row in MODEL_ROWS}
    assert len(set(ppl.values())) == len(MODEL_ROWS)
    assert all(map(math.isfinite, ppl.values()))


def test_a_run_repeats(eval_config):
    config = configured(eval_config, rows=["random"], live_clips=0)
    first, second = run(config), run(config)
    for record in (first, second):
        for cost in record["cost"].values():
            del cost["peak_memory_bytes"]
    for key in ("accuracy", "comparison", "cost", "uids_sha256"):
        assert first[key] == second[key]


def test_comparison_is_against_the_rows_that_do_not_look(outcome):
    record = outcome[0]
    strict = {row: values["strict"] for row, values in record["accuracy"].items()}
    saved = strict["always_speak"]["time_diff"] - strict["model"]["time_diff"]
    assert record["comparison"]["time_diff_saved_against_always_speak"] == pytest.approx(saved)
    assert set(record["comparison"]) == {
        "correctness_over_blind",
        "time_diff_saved_against_always_speak",
        "time_diff_saved_against_never_speak",
    }


def test_method_override_and_its_limits(eval_config):
    record = run(configured(eval_config, method={"name": "uniform", "keep": 1.0}, rows=[], live_clips=0))
    assert record["methods"]["model"]["name"] == "uniform"
    assert record["cost"]["model"]["kept_vision"] == [1.0] * 4
    wider = {"name": "mod", "keep": 0.4, "schedule": {"kind": "constant"}}
    with pytest.raises(ConfigError, match="parameters are not in"):
        run(configured(eval_config, method=wider))


def test_same_method_with_another_keep_reuses_the_trained_routers(eval_config):
    record = run(configured(eval_config, method={"name": "mod", "keep": 0.6}, rows=[], live_clips=0))
    assert record["cost"]["model"]["kept_vision"] == pytest.approx([1.0, 0.6, 1.0, 0.6])


def test_fewer_patches_are_measured_against_dense_on_all_of_them(eval_config):
    method = {"name": "uniform", "keep": 0.2, "schedule": {"kind": "constant", "first": 1}}
    record = run(configured(eval_config, method=method, rows=["dense", "downsample"], live_clips=0))
    own, dense, fewer = (record["cost"][row] for row in ("model", "dense", "downsample"))
    assert record["methods"]["downsample"]["pool"] == [1, 2]
    assert fewer["flops_full_dense"] == dense["flops_full"]
    assert own["flops_ratio"] <= fewer["flops_ratio"] < 1
    assert fewer["kv_bytes_dense"] == dense["kv_bytes"]


def test_control_rows_copy_counts():
    mod = get_method({"name": "mod", "keep": 0.3, "schedule": {"kind": "constant", "first": 2}})
    control = row_method("random", mod, seed=7)
    assert (control.name, control.keep, control.seed) == ("random", 0.3, 7)
    assert control.schedule == mod.schedule
    with pytest.raises(ConfigError, match=r"'uniform' needs a method with keep.*'shortv'"):
        row_method("uniform", get_method({"name": "shortv", "layers": [1]}), seed=0)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"model": "/nowhere"}, CheckpointError, "/nowhere"),
        ({"threshold": 1.5}, ConfigError, "threshold"),
        ({"rows": ["blinded"]}, ConfigError, "rows"),
        ({"tresholds": 1}, ConfigError, "did you mean 'threshold'"),
        ({"max_samples": 0}, ConfigError, "max_samples"),
        ({"device": "abacus"}, ConfigError, "abacus"),
    ],
)
def test_bad_settings_write_nothing(eval_config, tmp_path, change, error, words):
    with pytest.raises(error, match=words):
        run(configured(eval_config, out=str(tmp_path / "out"), **change))
    assert not (tmp_path / "out").exists()


def test_bad_data_writes_nothing(eval_config, clips, tmp_path):
    texts = json.loads((clips / "narration.json").read_text())
    texts["b"]["narration_pass_1"]["narrations"][0]["timestamp_sec"] = 99.0
    late = tmp_path / "late.json"
    late.write_text(json.dumps(texts))
    with pytest.raises(DataError, match="99"):
        run(configured(eval_config, data=eval_config["data"] | {"annotations": str(late)}, out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_checkpoint_without_tokenizer_or_with_another_base(eval_config, copied):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copied / name).unlink()
    with pytest.raises(CheckpointError, match="no tokenizer"):
        run(configured(eval_config, model=str(copied)))
    config = json.loads((copied / "vtskip_config.json").read_text())
    config["base"]["hidden"] = 64
    (copied / "vtskip_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="another base model"):
        run(configured(eval_config, model=str(copied)))
