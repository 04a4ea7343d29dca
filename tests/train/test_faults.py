"""What goes wrong in the middle of a run: told with its name, and nothing lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.processes import launch
from tests.train.runs import losses, train
from vtskip.data.collate import StreamCollator
from vtskip.errors import CheckpointError, ConfigError, DataError, ModelError, VideoError
from vtskip.train import loop
from vtskip.train.callbacks import JsonLog
from vtskip.train.checkpoints import checkpoints
from vtskip.train.faults import Interrupted, LossGuard


@pytest.mark.parametrize("value", ["nan", pytest.param("inf", marks=pytest.mark.slow)])
def test_a_loss_that_is_no_number_stops_with_its_batch(values, monkeypatch, value):
    values |= {"save_every": 1}
    real = loop.Trainer.compute_loss

    def compute_loss(self, *args):
        loss, outputs = real(self, *args)
        return (loss * float(value) if self.state.global_step == 1 and self.model.training else loss), outputs

    monkeypatch.setattr(loop.Trainer, "compute_loss", compute_loss)
    with pytest.raises(ModelError, match=rf"the loss of step 2 is {value} \(samples 'smoke-.*go on from the last"):
        train(values)
    out = Path(values["out"])
    assert [p.name for p in out.glob("checkpoint-*")] == ["checkpoint-1"]  # nothing saved after it
    facts = json.loads((out / "bad_batches" / "step_2_process_0.json").read_text())
    assert len(facts["samples"]) == 2 and all(Path(f).is_file() for s in facts["samples"] for f in s["files"])
    batch = load_file(out / "bad_batches" / "step_2_process_0.safetensors")
    assert {"input_ids", "labels", "frames"} <= batch.keys() and len(batch["input_ids"]) == 2


def test_a_run_that_stops_before_its_first_checkpoint_leaves_the_batch_alone(values, monkeypatch):
    monkeypatch.setattr(
        LossGuard, "watch", lambda guard, loss, *rest: guard.__dict__.update(last=(loss * 1e999, *rest))
    )
    with pytest.raises(ModelError, match="loss of step 1"):
        train(values)
    assert [p.name for p in Path(values["out"]).iterdir()] == ["bad_batches"]
    monkeypatch.undo()
    assert train(values)["steps"] == 3  # it is no obstacle


def test_on_a_device_the_loss_is_read_one_step_later(tmp_path, monkeypatch):
    guard = LossGuard(tmp_path, 0)

    class OnDevice(torch.Tensor):
        device = torch.device("meta")

    bad, good = (torch.tensor(v).as_subclass(OnDevice) for v in (float("nan"), 1.0))
    guard.watch(good, {}, {}, 1)
    guard.watch(bad, {}, {}, 2)
    with pytest.raises(ModelError, match="step 2"):
        guard.watch(good, {}, {}, 3)
    guard.watch(bad, {}, {}, 4)
    with pytest.raises(ModelError, match="step 4"):
        guard.check()


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_video_that_cannot_be_decoded_is_skipped_if_allowed_and_counted(values, monkeypatch, workers):
    values |= {"workers": workers, "log_every": 2}
    values["optim"]["steps"] = 4
    real = StreamCollator.look

    def look(self, sample):
        if sample.video.stem == "smoke-0004":
            raise VideoError(f"{sample.video}: damaged")
        return real(self, sample)

    monkeypatch.setattr(StreamCollator, "look", look)
    with pytest.raises(VideoError if workers == 0 else DataError, match=r"^[^\n]*smoke-0004\.mp4: damaged$"):
        train(values)
    assert not Path(values["out"]).exists()
    values["data"]["on_error"] = "skip"
    summary = train(values)
    assert summary["broken"] == 1 and summary["steps"] == 4
    lines = (Path(values["out"]) / "train_log.jsonl").read_text().splitlines()
    assert json.loads(lines[1])["broken"] == 1
    assert "smoke-0004.mp4: damaged" in (Path(values["out"]) / "broken.jsonl").read_text()


def test_a_file_that_is_no_video_is_skipped_before_the_run_and_counted_with_the_others(values, tmp_path):
    root = shutil.copytree(values["data"]["root"], tmp_path / "data")
    clip = root / "videos" / "smoke-0004.mp4"
    clip.write_bytes(clip.read_bytes()[:900])
    values["data"] |= {"root": str(root), "on_error": "skip"}
    values["optim"]["steps"] = 2
    for resume, steps in (("never", 2), ("auto", 3)):
        values["optim"]["steps"], values["save_every"] = steps, 2
        summary = train(values, resume)
        assert (summary["broken"], summary["samples"]) == (1, 7)
        (row,) = map(json.loads, (Path(values["out"]) / "broken.jsonl").read_text().splitlines())
        assert row["sample"] == "smoke-0004" and "not a readable video" in row["message"]
    two = [values["data"], values["data"] | {"on_error": "stop"}]
    with pytest.raises(ConfigError, match=r"'data\.1\.on_error' is 'stop', others' 'skip'"):
        train(values | {"data": two})


def test_a_full_disk_under_the_log_is_told_and_the_run_goes_on_later(values, monkeypatch):
    """A line that was cut short is dropped then."""
    values["save_every"] = 1
    real = JsonLog.on_log

    def full(self, args, state, control, **kwargs):
        if state.global_step == 2:
            self.path.write_text(self.path.read_text() + '{"step": 2, "lo')
            self.path = Path("/dev/full")
        return real(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match=r"No space left .*--resume auto"):
        patch.setattr(JsonLog, "on_log", full)
        train(values)
    assert [p.name for p in checkpoints(Path(values["out"]))] == ["checkpoint-1"]
    train(values, "auto")
    assert len(losses(values["out"])) == 3


def test_a_worker_that_dies_is_told_with_its_file(values, monkeypatch):
    values["workers"] = 1

    def look(self, sample):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(StreamCollator, "look", look)
    values["watch"] = {"probe": 0}
    with pytest.raises(DataError, match=r"died while it was reading sample 'smoke-\d+.*smoke-\d+\.mp4"):
        train(values)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_and_says_how_to_go_on(values, tmp_path, monkeypatch, number):
    values["optim"]["steps"] = 6
    values["save_every"] = 5
    real = loop.RunTrainer.training_step

    def training_step(self, *args):
        if self.state.global_step == 1:
            os.kill(os.getpid(), number)
        return real(self, *args)

    monkeypatch.setattr(loop.RunTrainer, "training_step", training_step)
    with pytest.raises(
        Interrupted, match=rf"stopped by {number.name} after step 2, which is saved.*--resume auto"
    ) as e:
        train(values)
    assert e.value.exit_code == 128 + number
    assert signal.getsignal(number) is (signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    out = Path(values["out"])
    assert (out / "checkpoint-2" / "trainer_state.json").is_file() and not (out / "model.safetensors").exists()
    monkeypatch.undo()
    assert train(values, "auto")["steps"] == 6
    train(values | {"out": str(tmp_path / "whole")})
    assert losses(out) == losses(tmp_path / "whole")


def test_the_same_signal_again_ends_at_once(values, monkeypatch):
    def training_step(self, *args):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the step went on")

    monkeypatch.setattr(loop.RunTrainer, "training_step", training_step)
    with pytest.raises(KeyboardInterrupt):
        train(values)
    assert not Path(values["out"]).exists()


@pytest.mark.slow
def test_processes_agree_to_stop(values, tmp_path):
    """A signal that reaches one of two processes stops both after the same step."""
    settings = tmp_path / "settings.json"
    values |= {"watch": {"probe": 0}}
    values["optim"] |= {"steps": 20, "batch_size": 1}
    settings.write_text(json.dumps({"config": values, "report": str(tmp_path)}))
    launch(Path(__file__).with_name("stop_worker.py"), settings, 2)
    told = [json.loads((tmp_path / f"told{rank}.json").read_text()) for rank in range(2)]
    assert told[0] == told[1] and "stopped by SIGTERM after step 2, which is saved" in told[0]
    held = {p.name for p in (Path(values["out"]) / "checkpoint-2").iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth", "run_state_0.safetensors", "run_state_1.safetensors"} <= held


@pytest.mark.slow
def test_the_program_exits_with_the_signal(values, tmp_path):
    values |= {"log_every": 1}
    values["optim"]["steps"] = 100000
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "vtskip.train", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        log = Path(values["out"]) / "train_log.jsonl"
        while process.poll() is None and not (log.is_file() and log.stat().st_size):
            try:
                process.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                continue
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=300)
    assert process.returncode == 143, told
    assert "stopped by SIGTERM" in told.splitlines()[-1] and "Traceback" not in told
