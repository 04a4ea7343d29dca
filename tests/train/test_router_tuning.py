"""Router-Tuning from the shipped files: a trained model stays as it is, its gates learn, and the loss falls."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import vtskip.configs
from vtskip.config import load_config
from vtskip.loading import load
from vtskip.saving import method_state
from vtskip.train import TrainConfig, run

CONFIGS = Path(vtskip.configs.__path__[0]) / "train"


@pytest.fixture(scope="module")
def train(smoke, tmp_path_factory):
    """``train(file, *overrides) -> folder, summary``: one of the shipped files, on clips that are there already."""
    folder = tmp_path_factory.mktemp("runs")

    def train(name, *overrides):
        out = folder / f"{len(list(folder.iterdir()))}"
        values = [f"out={out}", f"data.root={smoke}", *overrides]
        return out, run(load_config(TrainConfig, CONFIGS / f"{name}.yaml", values), progress=False)

    return train


@pytest.fixture(scope="module")
def dense(train):
    return train("tiny_dense", "optim.steps=40")[0]


@pytest.fixture(scope="module", params=["row", "sequence"])
def tuned(train, dense, request):
    """Folder and summary of eight steps of the shipped file, and of the same with a gate per sequence."""
    overrides = [] if request.param == "row" else ["method={name: mindskip, gradient_scale: 0.01}"]
    return train("router_tuning_tiny", f"model.checkpoint={dense}", "optim.steps=8", *overrides)


@pytest.mark.parametrize("tuned", ["row"], indirect=True)  # the gate of a sequence opens or closes all at once
def test_a_few_steps_lower_the_loss(tuned):
    lines = [json.loads(line) for line in (tuned[0] / "train_log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 8
    assert losses[-1] < 0.97 * losses[0]


def test_nothing_but_the_routers_changed(tuned, dense):
    folder, summary = tuned
    before, after = (load_file(f / "model.safetensors") for f in (dense, folder))
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    model, handle = load(folder)
    routers = method_state(model)
    assert handle.method.name == "mindskip" and list(routers) == [f"layers.{i}.router.weight" for i in range(3)]
    assert summary["trained_parameters"] == sum(r.numel() for r in routers.values()) == 3 * 64
    assert all(router.abs().max() > 1e-4 for router in routers.values())  # they start at zero
