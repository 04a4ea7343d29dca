"""Task scores of runs in two processes: those of the whole model on all samples, and nobody waits for the other."""

import json
from pathlib import Path

import pytest

from tests.processes import launch
from tests.train.test_evaluation import TASKS, scores
from tests.train.zero_runs import zero
from vtskip.config import parse
from vtskip.eval import EvalConfig
from vtskip.eval import run as evaluate

WORKER = Path(__file__).with_name("evaluation_worker.py")


@pytest.mark.parametrize("stage", [None, *(pytest.param(stage, marks=pytest.mark.slow) for stage in (2, 3))])
@pytest.mark.parametrize("method", [{"name": "mod", "keep": 0.4}, pytest.param(None, marks=pytest.mark.slow)])
def test_scores_of_two_processes_are_those_of_the_saved_model(values, tmp_path, stage, method):
    """The clips are three, so that the two have unlike shares; one of the tasks generates, with answers of any length."""
    data = values["data"] | {"split": "train"}
    values |= {
        "method": method,
        "evaluation": {"data": data, "tasks": TASKS, "max_samples": 3},
        "eval_every": 1,
        "save_every": 2,
        "best": {"metric": "ego4d_narration/strict/time_diff"},
    }
    values["optim"] = {"steps": 2, "batch_size": 1, "lr": 1e-3}
    if stage is not None:
        pytest.importorskip("deepspeed")
        values["deepspeed"] = zero(stage, tmp_path)
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(values))
    launch(WORKER, settings, 2)
    found = scores(values["out"])
    assert list(found) == [1, 2]
    own = {"model": values["out"], "rows": [], "live_clips": 0} | values["evaluation"]
    record = evaluate(parse(EvalConfig, own, "test"))
    for name, value in found[2].items():
        task, flavour, metric = name.removeprefix("eval_").split("/")
        assert value == pytest.approx(record["tasks"][task]["rows"]["model"][flavour][metric]["value"], rel=1e-4), name
    assert json.loads(Path(values["out"], "best.json").read_text())["step"] in (1, 2)
