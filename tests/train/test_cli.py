"""``vtskip train``, ``vtskip config`` and ``python -m vtskip.train`` as a user types them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.fixtures_stream import run_cli
from vtskip.data.collate import StreamCollator
from vtskip.errors import VideoError


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


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optim.stepz=1", "did you mean 'steps'"),
        ("optim.learning_rate=1", "here it is 'optim.lr'"),
        ("model.stream_loss_weight=2", "here it is 'loss.stream_weight'"),
        ("output_dir=x", "here it is 'out'"),
    ],
)
def test_a_fault_is_one_line_and_exit_code_2(config_file, override, said):
    result = run_cli("train", config_file, override)
    assert result.code == 2 and result.out == ""
    assert len(result.err.splitlines()) == 1 and said in result.err


def test_a_fault_in_the_file_has_its_line(config_file):
    config_file.write_text(config_file.read_text() + "lora:\n  r: 4\n  alfa: 8\n")
    line = len(config_file.read_text().splitlines())
    result = run_cli("train", config_file)
    assert f"train.yaml:{line}: unknown key 'lora.alfa'; did you mean 'alpha'" in result.err


def test_interrupted_runs_are_resumed(config_file, values):
    assert run_cli("train", config_file, "save_every=2").code == 0
    again = run_cli("train", config_file, "save_every=2")
    assert again.code == 2 and "not empty" in again.err
    resumed = run_cli("train", config_file, "save_every=2", "--resume", "auto")
    assert resumed.code == 0 and "3 steps" in resumed.out
    other = run_cli("train", config_file, "save_every=2", "seed=1", "--resume", f"{values['out']}/checkpoint-2")
    assert other.code == 2 and "has seed 0, this configuration 1" in other.err


def test_scores_are_told_while_it_trains_and_at_the_end(config_file, values, smoke):
    data = f"{{kind: synthetic, root: {smoke}, tier: smoke, split: val, system: You see it., instruction: Narrate.}}"
    config_file.write_text(config_file.read_text() + f"evaluation: {{data: {data}, tasks: [ego4d_narration]}}\n")
    score = "ego4d_narration/strict/time_diff"
    result = run_cli("train", config_file, "eval_every=2", "evaluation.max_samples=1", f"best={{metric: {score}}}")
    assert result.code == 0, result.err
    assert f"evaluation after step 2: {score}" in result.err and f"evaluation after step 3: {score}" in result.err
    assert f"held out: {score}" in result.out and "best: checkpoint-" in result.out
    for flag in ((), ("--dry-run",)):
        wrong = run_cli("train", config_file, "evaluation.max_sample=1", f"out={values['out']}_other", *flag)
        assert wrong.code == 2 and "did you mean 'max_samples'" in wrong.err and wrong.out == ""


def test_a_dry_run_shows_everything_and_leaves_nothing(config_file, values, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    result = run_cli("train", config_file, "--dry-run", "optim.lrs.router=0.5")
    assert result.code == 0, result.err
    for said in (
        "keep: 0.4",
        "router",
        "0.5",
        "<v> x 5",
        "|User|:|Narrate|.",
        "\\n",
        "group 0",
        "no measurement",
        "read back and equal",
    ):
        assert said in result.out, said
    assert sorted(tmp_path.rglob("*")) == before
    again = run_cli("train", config_file, "--dry-run", "--json", "--nproc", "4")
    found = json.loads(again.out)
    assert found["estimate"]["processes"] == 4 and found["conversations"]["train"] == 8
    for sample in found["samples"]:
        assert sum(row["count"] for row in sample["rows"]) == sample["tokens"]
        frames = [row for row in sample["rows"] if row["vision"]]
        assert frames and all(row["kept"] == 0.4 and row["count"] == 5 for row in frames)  # two of five


def test_a_dry_run_does_the_step_that_a_run_would_begin_with(config_file, monkeypatch):
    """The batch with the most tokens; and where a run would skip a broken video, so does its dry run."""
    more = ["sampling={tokens: 500}", "optim.steps=null", "optim.epochs=2"]
    found = json.loads(run_cli("train", config_file, "--dry-run", "--json", *more).out)
    summary = json.loads(run_cli("train", config_file, "--json", "watch.probe=0", "workers=0", *more).out)
    assert found["estimate"]["steps"] == summary["steps"]
    assert found["step"]["samples"] > 2 and 250 < found["step"]["tokens"] <= 500
    real = StreamCollator.look

    def look(self, sample):
        if sample.video.stem == "smoke-0000":
            raise VideoError(f"{sample.video}: damaged")
        return real(self, sample)

    monkeypatch.setattr(StreamCollator, "look", look)
    assert "smoke-0000.mp4: damaged" in run_cli("train", config_file, "--dry-run").err
    result = run_cli("train", config_file, "--dry-run", "data.on_error=skip")
    assert result.code == 0 and "skipped: " in result.out and "smoke-0001" in result.out, result.err


def test_a_dry_run_tells_of_a_loss_that_is_no_number(config_file, monkeypatch):
    from vtskip.models.streaming_llava import StreamingLlava

    forward = StreamingLlava.forward

    def broken(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        out.loss = None if out.loss is None else out.loss * float("nan")
        return out

    monkeypatch.setattr(StreamingLlava, "forward", broken)
    result = run_cli("train", config_file, "--dry-run")
    assert result.code == 2 and "first batch has loss nan" in result.err


def test_nproc_becomes_torchrun(config_file, monkeypatch):
    started = []
    monkeypatch.setattr(os, "execv", lambda *a: started.append(a) or sys.exit(0))
    assert run_cli("train", config_file, "seed=3", "--nproc", "2", "--resume", "auto").code == 0
    program, command = started[0]
    assert program == sys.executable and "--nproc_per_node=2" in command
    assert command[command.index("vtskip.train") :] == ["vtskip.train", str(config_file), "seed=3", "--resume", "auto"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "one of 2 launched processes" in run_cli("train", config_file, "--nproc", "2").err


def test_shipped_files_are_listed_and_copied(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = {row["name"]: row for row in json.loads(run_cli("config", "ls", "train", "--json").out)}
    assert "train/demo_mod" in rows and rows["train/demo_mod"]["about"].startswith("A small streaming narrator")
    assert run_cli("config", "cp", "demo_mod").out.strip() == "demo_mod.yaml"
    assert (tmp_path / "demo_mod.yaml").read_bytes() == Path(rows["train/demo_mod"]["path"]).read_bytes()
    assert "exists already" in run_cli("config", "cp", "train/demo_mod").err
    assert run_cli("config", "cp", "deepspeed/zero2", tmp_path / "own.json").code == 0
    assert "did you mean" in run_cli("config", "cp", "demo_mood").err
    assert (
        "there are several: methods/pmod_llava_1.5_7b, train/pmod" in run_cli("config", "cp", "pmod_llava_1.5_7b").err
    )
    assert "did you mean 'train'" in run_cli("config", "ls", "trian").err


def test_the_schema_knows_every_key():
    schema = json.loads(run_cli("config", "schema").out)
    assert {"model", "lora", "optim", "sampling", "watch"} <= schema["properties"].keys()
    assert schema["additionalProperties"] is False and "lrs" in schema["$defs"]["Optim"]["properties"]
    assert "did you mean 'train'" in run_cli("config", "schema", "trian").err


def test_the_module_is_the_same_program(tmp_path):
    """Also as DeepSpeed's launcher starts it."""
    done = subprocess.run(
        [sys.executable, "-m", "vtskip.train", "--local_rank=0", str(tmp_path / "no.yaml")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "no.yaml" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["-m", "vtskip", "train", "FILE", "--nproc", "2"],
        [
            *(
                "-m",
                "accelerate.commands.launch",
                "--cpu",
                "--num_processes=2",
                "--num_machines=1",
                "--mixed_precision=no",
            ),
            *("--dynamo_backend=no", "-m", "vtskip.train", "FILE"),
        ],
        ["-m", "deepspeed.launcher.runner", "--num_gpus=2", "--module", "vtskip.train", "FILE"],
    ],
    ids=["nproc", "accelerate", "deepspeed"],
)
def test_launchers(config_file, values, launcher):
    pytest.importorskip("deepspeed")
    command = [str(config_file) if word == "FILE" else word for word in launcher]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    more = ["optim.batch_size=1", "deepspeed=zero2", "trains.vision=false"]
    done = subprocess.run(
        [sys.executable, *command, *more], capture_output=True, text=True, env=environment, timeout=900
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    lines = (Path(values["out"]) / "train_log.jsonl").read_text().splitlines()
    assert sum("loss" in json.loads(line) for line in lines) == 3
