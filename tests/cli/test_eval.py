"""``vtskip eval``: table, JSON, overrides, errors."""

import json

import yaml

from tests.fixtures_stream import run_cli


def written(values, folder, **changes):
    path = folder / "eval.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


def test_table_has_accuracy_beside_cost(eval_config, tmp_path):
    path = written(eval_config, tmp_path)
    result = run_cli("eval", path, f"out={tmp_path / 'out'}", "rows=[blind]", columns=80)
    assert result.code == 0, result.err
    for words in ("strict", "FLOPs", "content", "blind", "always-speak", "strict TimeDiff", "record.json"):
        assert words in result.out
    assert "…" not in result.out, "a column is cut off"
    assert json.loads((tmp_path / "out/record.json").read_text())["config"]["rows"] == ["blind"]


def test_json_is_the_record_alone(eval_config, tmp_path):
    result = run_cli("eval", written(eval_config, tmp_path), "--json", "rows=[]", "live_clips=0", "threshold=0.3")
    record = json.loads(result.out)
    assert record["config"]["threshold"] == 0.3
    assert list(record["cost"]) == ["model"]
    assert "model" in result.err  # the progress bar


def test_bad_configuration_is_one_line_and_exit_2(eval_config, tmp_path):
    for override, words in [
        ("tolerance=[1]", "did you mean 'tolerances'"),
        ("threshold=2", "threshold"),
        ("model=/nowhere", "/nowhere"),
        ("data.split=test", "splits"),
        ("data.videos=/nowhere", "/nowhere"),
    ]:
        result = run_cli("eval", written(eval_config, tmp_path), override, f"out={tmp_path / 'out'}", "--json")
        assert (result.code, result.out) == (2, ""), override
        assert words in result.err
        assert "Traceback" not in result.err
        assert not (tmp_path / "out").exists()


def test_missing_file(tmp_path):
    result = run_cli("eval", tmp_path / "no.yaml")
    assert result.code == 2
    assert "no.yaml" in result.err
