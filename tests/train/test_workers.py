"""Loader processes change no number: with dropout, over several epochs, and from a checkpoint in the middle of one."""

import shutil
from pathlib import Path

from tests.train.runs import log, train


def test_workers_change_no_number_of_a_run_with_dropout(values, tmp_path):
    """Eight clips, four a step, three epochs; the fourth step's checkpoint is resumed with other workers than it had."""
    values["optim"] |= {"steps": 6, "batch_size": 4}
    values |= {"lora": {"r": 2, "alpha": 4, "dropout": 0.3}, "save_every": 3, "keep": 9}
    train(values)
    out = Path(values["out"])
    with_workers = values | {"workers": 2, "out": str(tmp_path / "two")}
    train(with_workers)
    assert log(tmp_path / "two") == log(out)
    again = tmp_path / "again"
    again.mkdir()
    for held in ("checkpoint-3", "train_config.yaml", "train_log.jsonl"):
        source = tmp_path / "two" / held
        (shutil.copytree if source.is_dir() else shutil.copy)(source, again / held)
    train(values | {"workers": 1, "out": str(again)}, "auto")
    assert log(again) == log(out)


def test_the_wait_is_that_of_the_training_for_its_batch(monkeypatch):
    from vtskip.train import loading

    clock, waits = [0.0], []
    monkeypatch.setattr(loading.time, "perf_counter", lambda: clock[0])

    def batches():
        for seconds in (0.5, 0.0, 2.0):
            clock[0] += seconds  # what a loader takes that is not ahead
            yield seconds

    for _ in loading.Waited(batches(), None, waits.append):
        clock[0] += 10.0  # the step
    assert waits == [0.5, 0.0, 2.0, 0.0]  # the last one finds the end
