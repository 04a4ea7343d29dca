"""What a run tells beside its loss is true, and telling it changes nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train.runs import log, losses, train
from vtskip.errors import ConfigError
from vtskip.loading import load
from vtskip.train import loop
from vtskip.train.probe import binary_entropy, overlap
from vtskip.train.watch import RouterGradients

EVERY_LINE = {"stream_loss", "language_loss", "padding", "kept/1", "vision_flops_skipped", "router_grad_norm"}


def full_log(out):
    lines = [json.loads(line) for line in (Path(out) / "train_log.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def test_watching_changes_no_step(values, tmp_path):
    values["optim"]["steps"] = 4
    train(values | {"watch": {"probe": 0}, "out": str(tmp_path / "plain"), "log_every": 4})
    values |= {"watch": {"probe": 2, "pictures_every": 2}, "log_every": 2}
    values |= {"validation": values["data"] | {"split": "val"}, "eval_every": 3}
    train(values)
    seen, plain = losses(values["out"]), losses(tmp_path / "plain")
    assert np.float32(sum(seen) / 2) == pytest.approx(plain[0], rel=1e-6)
    names = [p.name for p in (Path(values["out"]) / "pictures").iterdir()]
    assert sorted(names) == ["step_000002.png", "step_000004.png"]


def test_a_line_holds_what_was_asked_for(values):
    values["log_every"] = 3
    train(values)
    (line,) = full_log(values["out"])
    assert line.keys() >= EVERY_LINE | {"tokens_per_second", "data_wait", "memory_gib", "router_entropy"}
    assert line["tokens_per_second"] > 0 and 0 < line["data_wait"] < 1 and line["memory_gib"] > 0.01
    assert 0 <= line["router_entropy"] <= 1 and 0 < line["padding"] < 1
    assert not any(isinstance(value, list) for value in line.values())  # tensorboard takes scalars only


def test_the_parts_make_up_the_loss(values, monkeypatch):
    """And the kept share and the FLOPs are those of the steps alone, not of evaluation or probe."""
    found = {}
    real = loop.RunTrainer.log

    def spy(self, logs, *args):
        if "loss" in logs:
            found["parts"] = self.watcher.sums.parts.clone()
        real(self, logs, *args)

    monkeypatch.setattr(loop.RunTrainer, "log", spy)
    values |= {"validation": values["data"], "eval_every": 1}
    train(values)
    line = full_log(values["out"])[-1]
    stream, stream_labels, language, language_labels = found["parts"].tolist()
    assert line["loss"] == pytest.approx((stream + language) / (stream_labels + language_labels), rel=1e-5)
    assert line["stream_loss"] == pytest.approx(stream / stream_labels, rel=1e-6)
    assert line["language_loss"] == pytest.approx(language / language_labels, rel=1e-6)
    # 2 of the 5 rows of each frame, in one of two layers
    assert line["kept/1"] == 0.4 and line["vision_flops_skipped"] == pytest.approx(0.6 / 2)


@pytest.mark.parametrize(
    ("method", "share"),
    [
        # ShortV computes K and V of all rows; Skip-FFN attention too. Widths: hidden 32, FFN 48.
        ({"name": "shortv", "layers": [0]}, (4 * 32 * 32 + 6 * 32 * 48) / (8 * 32 * 32 + 6 * 32 * 48) / 2),
        ({"name": "skip_ffn", "keep": 0.4}, 0.6 * 6 * 48 / (8 * 32 + 6 * 48)),
    ],
    ids=["shortv", "skip_ffn"],
)
def test_the_share_of_vision_flops_skipped(values, method, share):
    values["optim"]["steps"] = 1
    train(values | {"method": method})
    assert full_log(values["out"])[0]["vision_flops_skipped"] == pytest.approx(share)


def test_a_dense_run_has_no_routers_to_tell_of(values):
    values["method"] = None
    train(values)
    line = full_log(values["out"])[-1]
    assert not [key for key in line if key.startswith(("kept", "router", "vision_flops"))]
    assert {"stream_loss", "language_loss", "tokens_per_second"} <= line.keys()


@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_router_gradients_are_the_gradients(values, monkeypatch, accumulate):
    """Over all micro-batches, before clipping, and only in the steps that are logged."""
    norms = []
    real_clip = loop.RunTrainer._clip_grad_norm

    def clip(self, model):
        parameters = self.watcher.gradients.parameters
        norms.append(torch.cat([p.grad.flatten() for p in parameters]).norm().item())
        return real_clip(self, model)

    monkeypatch.setattr(loop.RunTrainer, "_clip_grad_norm", clip)
    values["optim"] |= {"steps": 4, "accumulate": accumulate, "clip": 1e-3}
    values |= {"log_every": 2, "method": {"name": "mod", "keep": 0.4, "schedule": {"kind": "list", "layers": [0]}}}
    train(values)
    assert [line["router_grad_norm"] for line in full_log(values["out"])] == pytest.approx(
        [norms[1], norms[3]], rel=1e-5
    )
    assert min(norms) > 0


def test_hooks_are_gone_afterwards(values):
    train(values)
    model, _ = load(values["out"])
    gradients = RouterGradients(model)
    assert gradients.parameters and all(p._backward_hooks for p in gradients.parameters)
    gradients.remove()
    assert not any(p._backward_hooks for p in gradients.parameters)


def test_overlap_of_two_selections():
    def mask(*places):
        rows = torch.zeros(1, 6, dtype=torch.bool)
        rows[0, list(places)] = True
        return rows

    assert overlap(mask(0, 1), mask(0, 1)) == 1.0
    assert overlap(mask(0, 1, 2), mask(2, 3)) == 0.25
    assert overlap(mask(0), mask(1)) == 0.0
    assert overlap(mask(), mask()) is None


def test_entropy_in_bits_whatever_a_router_gives():
    vision = torch.tensor([[True, True, False]])
    assert binary_entropy(torch.zeros(1, 3), vision) == pytest.approx(1.0)
    assert binary_entropy(torch.tensor([[50.0, -50.0, 0.0]]), vision) == pytest.approx(0.0, abs=1e-6)
    score = torch.tensor([[1.0, 1.0, 9.0]])
    p = 1 / (1 + np.exp(-1.0))
    expected = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    assert binary_entropy(score, vision) == pytest.approx(expected, rel=1e-6)
    assert binary_entropy(torch.stack([torch.zeros(1, 3), score], -1), vision) == pytest.approx(expected, rel=1e-6)
    assert binary_entropy(torch.tensor([1.0]), vision) == pytest.approx(expected, rel=1e-6)


def test_keep_is_warmed_up_by_the_trainer(values):
    values["optim"]["steps"] = 4
    values |= {"keep_warmup": {"steps": 3}, "save_every": 1, "keep": 9}
    train(values)
    assert [line["keep"] for line in log(values["out"])] == pytest.approx([1.0, 0.8, 0.6, 0.4])
    kept = [line["kept/1"] for line in log(values["out"])]
    assert kept == pytest.approx([1.0, 0.8, 0.6, 0.4])  # of 5 rows: 5, 4, 3, 2
    for folder in (values["out"], f"{values['out']}/checkpoint-1"):
        assert json.loads(Path(folder, "vtskip_config.json").read_text())["method"]["keep"] == 0.4


@pytest.mark.parametrize(
    ("method", "steps", "message"),
    [
        ({"name": "mod"}, 4, "keep_warmup.steps 4: the run has 3 steps"),
        (
            {"name": "shortv", "layers": [0]},
            2,
            "keep_warmup: method 'shortv' has no share of rows to vary; accepted: mod",
        ),
        ({"name": "skip_ffn", "retained": [0]}, 2, "keep_warmup: method 'skip_ffn' has no share"),
        (None, 2, "keep_warmup: a run without a method has no share"),
    ],
)
def test_a_warm_up_that_cannot_be_is_refused(values, method, steps, message):
    with pytest.raises(ConfigError, match=message):
        train(values | {"method": method, "keep_warmup": {"steps": steps}})
    assert not Path(values["out"]).exists()
