"""TensorBoard and wandb get what the log has; both are tested where they are installed."""

import json
from pathlib import Path

import pytest

from tests.train.runs import train


def logged(out):
    """(name, step) -> value of every number of the log."""
    lines = [json.loads(line) for line in (Path(out) / "train_log.jsonl").read_text().splitlines()]
    own = ("step", "seconds")  # of the log alone
    numbers = [(line["step"], k, v) for line in lines for k, v in line.items() if isinstance(v, int | float)]
    return {(name, step): value for step, name, value in numbers if name not in own}


def scalars(folder):
    """(name, step) -> value of every number in event files, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {(name, e.step): e.value for name in events.Tags()["scalars"] for e in events.Scalars(name)}


def resumed(values, name):
    """A run of four steps that is interrupted after the third one, and one that goes on from the second."""
    values |= {"report_to": [name], "save_every": 2, "validation": values["data"] | {"split": "val"}, "eval_every": 2}
    values["optim"]["steps"] = 3
    train(values)
    out = Path(values["out"])
    assert logged(out).keys() >= {("loss", 3), ("eval_loss", 2), ("kept/1", 1), ("router_entropy", 1)}
    return out


def go_on(values, out):
    values["optim"]["steps"] = 4
    train(values, str(out / "checkpoint-2"))


def test_tensorboard_has_the_names_numbers_and_steps_of_the_log(values):
    pytest.importorskip("tensorboard")
    out = resumed(values, "tensorboard")
    first, found = logged(out), scalars(out / "tensorboard")
    assert found.keys() == first.keys()
    assert list(found.values()) == pytest.approx([first[key] for key in found], rel=1e-6)
    go_on(values, out)
    whole, found = logged(out), scalars(out / "tensorboard")
    assert found.keys() == whole.keys() and ("loss", 4) in found
    assert list(found.values()) == pytest.approx([whole[key] for key in found], rel=1e-6)


def test_wandb_gets_them_too_and_a_resumed_run_goes_on(values, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    sent, started = {}, []
    real = wandb.init

    def init(**kwargs):
        run = real(**kwargs)
        started.append((run.id, kwargs["resume"], dict(run.config)["optim"]["lr"]))
        log = run.log

        def noted(found, step):
            sent.update({(name, step): value for name, value in found.items()})
            log(found, step=step)

        run.log = noted
        return run

    monkeypatch.setattr(wandb, "init", init)
    out = resumed(values, "wandb")
    assert sent == pytest.approx(logged(out))
    assert [path for path in (out / "wandb").glob("offline-run-*") if any(path.glob("*.wandb"))]
    go_on(values, out)
    assert [lr for _, _, lr in started] == [0.01, 0.01]
    assert started[0][0] == started[1][0] and started[1][1] == "allow"
    assert ("loss", 4) in sent


def test_what_is_missing_is_named_with_the_way_to_get_it(values, monkeypatch):
    from vtskip.errors import ConfigError
    from vtskip.train import reports

    monkeypatch.setattr(reports, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="report_to 'wandb': not installed; pip install wandb"):
        train(values | {"report_to": ["wandb"]})
    assert not Path(values["out"]).exists()
