"""A run that was killed goes on as if it had never been: to the last bit, whatever was in flight."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch

from tests.processes import launch
from tests.train.runs import log, train, weights

WORKER = Path(__file__).with_name("kill_worker.py")


def same(a, b):
    assert a.keys() == b.keys()
    return [k for k in a if not torch.equal(a[k], b[k])]


def test_every_number_of_the_log_goes_on(values, tmp_path):
    """From inside a log interval and an epoch, with loaders, token-budget batches, warm-up, probe and accumulation."""
    values |= {
        "log_every": 4,
        "save_every": 3,
        "keep": 9,
        "workers": 1,
        "sampling": {"tokens": 400, "group": ["modality"]},
        "keep_warmup": {"steps": 7, "start": 0.9, "shape": "cosine"},
    }
    values["optim"] |= {"steps": 8, "accumulate": 2}
    train(values)
    out = Path(values["out"])
    for step in (3, 6):
        again = tmp_path / f"from{step}"
        again.mkdir()
        for name in (f"checkpoint-{step}", "train_config.yaml", "train_log.jsonl"):
            (shutil.copytree if (out / name).is_dir() else shutil.copy)(out / name, again / name)
        train(values | {"out": str(again)}, "auto")
        assert log(again) == log(out)
        assert not same(weights(again), weights(out))
    lines = log(out)
    assert [line["step"] for line in lines] == [4, 8]
    assert {"kept_overlap", "stream_loss", "kept/1", "keep"} <= lines[1].keys()  # the comparison is of these too
    assert lines[0]["keep"] > 0.4 and lines[1]["keep"] == 0.4
    state = json.loads((out / "checkpoint-3" / "trainer_state.json").read_text())
    assert 0.4 < state["stateful_callbacks"]["KeepSchedule"]["attributes"]["value"] < 0.9


@pytest.mark.parametrize("length", ["steps", pytest.param("epochs", marks=pytest.mark.slow)])
def test_a_finished_run_can_be_made_longer(values, length):
    """By steps or by epochs (of four steps here); asked for no more, it takes none."""
    values["save_every"] = 2
    values["optim"] |= {"steps": 4} if length == "steps" else {"steps": None, "epochs": 1.0}
    train(values)
    assert train(values, "auto")["steps"] == 4
    values["optim"] |= {"steps": 6} if length == "steps" else {"epochs": 1.5}
    assert train(values, "auto")["steps"] == 6
    assert [line["step"] for line in log(values["out"])] == [1, 2, 3, 4, 5, 6]


def killed(values, folder, kills):
    """The exit codes of a run that is started once per kill and once more."""
    folder.mkdir()
    settings, report = folder / "settings.json", folder / "ends.json"
    config = values | {"out": str(folder / "run")}
    settings.write_text(json.dumps({"config": config, "kills": kills, "report": str(report)}))
    launch(WORKER, settings, 1)
    return json.loads(report.read_text())


def test_killed_inside_a_save_the_last_good_checkpoint_is_there(values, tmp_path):
    values |= {"save_every": 1, "keep": 1}
    values["optim"]["steps"] = 4
    ends = killed(values, tmp_path / "killed", [[2, "save"], [3, "publish"]])
    assert ends == [-9, -9, 0]
    train(values)
    assert log(tmp_path / "killed" / "run") == log(values["out"])
    assert not same(weights(tmp_path / "killed" / "run"), weights(values["out"]))
    assert [p.name for p in Path(values["out"]).glob("checkpoint-*")] == ["checkpoint-4"]


@pytest.mark.slow
def test_killed_ten_times_at_random_steps(values, tmp_path):
    """One of them inside a save. The seed is new every time; the message of a failure has the steps."""
    steps = sorted(random.sample(range(1, 40), 10))
    kills = [[step, "step"] for step in steps]
    kills[random.randrange(1, 9)][1] = "save"
    values |= {"save_every": 3, "log_every": 1, "keep": 2}
    values["optim"] |= {"steps": 42, "warmup": 0.2}
    ends = killed(values, tmp_path / "killed", kills)
    assert ends == [-9] * 10 + [0], kills
    train(values)
    own, expected = log(tmp_path / "killed" / "run"), log(values["out"])
    assert [line["step"] for line in own] == list(range(1, 43))
    assert [line["loss"] for line in own] == [line["loss"] for line in expected], kills
    assert own == expected, kills
    assert not same(weights(tmp_path / "killed" / "run"), weights(values["out"])), kills
