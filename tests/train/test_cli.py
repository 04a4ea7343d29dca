"""``vtskip train`` and ``python -m vtskip.train`` as a user types them."""

import json
import subprocess
import sys

import pytest
import yaml

from tests.fixtures_stream import run_cli


@pytest.fixture
def config_file(values, tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_json_is_all_that_goes_to_stdout(config_file, values):
    result = run_cli("train", config_file, "optim.steps=1", "--json")
    assert result.code == 0, result.err
    summary = json.loads(result.out)
    assert (summary["out"], summary["steps"]) == (values["out"], 1)
    assert "step 1/1" in result.err


def test_a_fault_is_one_line_and_exit_code_2(config_file):
    result = run_cli("train", config_file, "optim.stepz=1")
    assert result.code == 2 and result.out == ""
    assert len(result.err.splitlines()) == 1 and "did you mean 'steps'" in result.err


def test_interrupted_runs_are_resumed(config_file, values):
    assert run_cli("train", config_file, "save_every=2").code == 0
    again = run_cli("train", config_file, "save_every=2")
    assert again.code == 2 and "not empty" in again.err
    resumed = run_cli("train", config_file, "save_every=2", "--resume", "auto")
    assert resumed.code == 0 and "3 steps" in resumed.out


def test_the_module_is_the_same_program(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "vtskip.train", str(tmp_path / "no.yaml")], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "no.yaml" in done.stderr and "Traceback" not in done.stderr
