"""Checkpoints are whole or not there, and the last good one outlives whatever goes wrong."""

import errno
import shutil
from pathlib import Path

import pytest
import torch

from tests.train.runs import log, losses, train, weights
from vtskip.errors import CheckpointError
from vtskip.train import checkpoints, loop


def named(out):
    return sorted(p.name for p in Path(out).iterdir() if p.is_dir())


def complete(folder, step):
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(str(step))


def test_rotation_spares_the_newest_and_counts_only_whole_ones(tmp_path):
    for step in (2, 10, 9):
        complete(tmp_path / f"checkpoint-{step}", step)
    (tmp_path / "checkpoint-11").mkdir()  # another program's half one
    complete(tmp_path / "checkpoint-best", 1)
    complete(checkpoints.empty_stage(tmp_path) / "checkpoint-5", 5)
    checkpoints.publish(tmp_path, "checkpoint-5", keep=2)
    assert [p.name for p in checkpoints.checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-10"]
    assert {"checkpoint-11", "checkpoint-best"} <= set(named(tmp_path)) and not (tmp_path / checkpoints.STAGE).exists()


def test_the_same_step_again_replaces_it(tmp_path):
    complete(tmp_path / "checkpoint-5", 4)
    complete(checkpoints.empty_stage(tmp_path) / "checkpoint-5", 5)
    checkpoints.publish(tmp_path, "checkpoint-5", keep=1)
    assert (tmp_path / "checkpoint-5" / "trainer_state.json").read_text() == "5"
    assert named(tmp_path) == ["checkpoint-5"]


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        pytest.param(RuntimeError("write failed"), marks=pytest.mark.slow),  # torch.save's own
    ],
)
def test_a_full_disk_ends_the_run_and_leaves_the_last_good_one(values, monkeypatch, fault):
    values |= {"save_every": 1, "keep": 1}
    real = torch.save

    def full(obj, path, *args, **kwargs):
        if "checkpoint-2" in str(path) and str(path).endswith("optimizer.pt"):
            raise fault
        return real(obj, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    message = (
        r"checkpoint-2 could not be saved \(.*(No space|write failed).*the last good one is .*checkpoint-1: --resume"
    )
    with pytest.raises(CheckpointError, match=message):
        train(values)
    assert named(values["out"]) == ["checkpoint-1"]
    monkeypatch.undo()
    assert train(values, "auto")["steps"] == 3
    assert [line["step"] for line in log(values["out"])] == [1, 2, 3]


def test_a_model_that_cannot_be_written_leaves_the_checkpoint(values, monkeypatch):
    values["save_every"] = 2

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(loop, "publish_files", full)
    with pytest.raises(CheckpointError, match=r"the model could not be saved .*checkpoint-3"):
        train(values)
    assert not (Path(values["out"]) / "model.safetensors").exists()
    monkeypatch.undo()
    assert train(values, "auto")["steps"] == 3
    assert (Path(values["out"]) / "model.safetensors").is_file()


@pytest.mark.slow
def test_going_on_from_an_earlier_one_sets_the_later_aside(values):
    values |= {"save_every": 1, "keep": 3}
    train(values)
    first, before = losses(values["out"]), weights(values["out"])
    train(values, str(Path(values["out"]) / "checkpoint-1"))
    assert losses(values["out"]) == first
    assert all(torch.equal(before[k], v) for k, v in weights(values["out"]).items())
    held = named(values["out"])
    assert held == ["abandoned-checkpoint-2", "abandoned-checkpoint-3", *(f"checkpoint-{n}" for n in (1, 2, 3))]


def test_nothing_in_a_checkpoint_is_unpickled(values, monkeypatch, tmp_path):
    """torch.load reads tensors and plain values only: a file that would run code is refused."""
    values |= {"save_every": 2}
    train(values)
    out = Path(values["out"])
    assert not list(out.rglob("training_args.bin"))
    shutil.rmtree(out / "checkpoint-3")

    class Harm:
        def __reduce__(self):
            return Path.touch, (tmp_path / "harmed",)

    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        path = out / "checkpoint-2" / name
        good = path.read_bytes()
        torch.save({"state": Harm()}, path)
        with pytest.raises(CheckpointError, match="checkpoint-2: more than numbers in it, so it is not read"):
            train(values, "auto")
        path.write_bytes(good)
    assert not (tmp_path / "harmed").exists()
    assert train(values, "auto")["steps"] == 3
