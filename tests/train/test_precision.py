"""What numbers are computed in: what trains, and what is refused before anything is loaded."""

import json
import math
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.train.runs import losses, train
from vtskip.errors import ConfigError


def test_bf16_on_a_cpu_trains_scores_and_saves_fp32(values, tmp_path):
    train(values)
    own = {key: values["data"][key] for key in ("kind", "root", "tier", "system", "instruction")}
    again = values | {"out": str(tmp_path / "half"), "precision": "bf16"}
    summary = train(again | {"evaluation": {"data": own | {"split": "val"}, "tasks": ["coin_step"], "max_samples": 1}})
    whole, half = losses(values["out"]), losses(again["out"])
    assert half == pytest.approx(whole, rel=0.05) and half != whole
    assert math.isfinite(summary["eval_coin_step/strict/accuracy"])
    assert {str(t.dtype) for t in load_file(tmp_path / "half" / "model.safetensors").values()} == {"torch.float32"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"precision": "fp16"}, "precision: got 'fp16', accepted: 'fp32' or 'bf16'"),
        ({"fp16": True}, "here it is 'precision: bf16'"),
        ({"precision": "float32"}, "precision: got 'float32', accepted"),
    ],
)
def test_other_precisions_are_refused_before_anything_is_loaded(values, change, said):
    with pytest.raises(ConfigError, match=said):
        train(values | change | {"model": {"pretrained": "/nowhere"}})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"fp16": {"enabled": True}}, "fp16 enabled; accepted: precision fp32 or bf16"),
        ({"bf16": {"enabled": True}}, "bf16.enabled True is not what 'precision' says"),
        ({"gradient_clipping": 0.5}, "gradient_clipping 0.5 is not what 'optim.clip' says"),
        ({"gradient_accumulation_steps": 8}, "'optim.accumulate'"),
        ({"train_micro_batch_size_per_gpu": 4}, "'optim.batch_size'"),
        ({"train_batch_size": 64}, "accepted: .auto."),
        ({"optimizer": {"type": "AdamW"}}, "take the place of 'optim'"),
        ({"scheduler": {"type": "WarmupLR"}}, "take the place of 'optim.schedule'"),
    ],
)
def test_a_deepspeed_file_that_says_otherwise_is_refused(values, tmp_path, settings, said):
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}} | settings))
    with pytest.raises(ConfigError, match=said):
        train(values | {"deepspeed": str(path)})
    assert not Path(values["out"]).exists()


def test_one_that_says_the_same_is_read(values, tmp_path):
    from vtskip.config import parse
    from vtskip.train import TrainConfig
    from vtskip.train.recipe import read_deepspeed

    path = tmp_path / "own.json"
    said = {"bf16": {"enabled": False}, "gradient_clipping": 1.0, "train_micro_batch_size_per_gpu": 2}
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}} | said))
    assert read_deepspeed(parse(TrainConfig, values | {"deepspeed": str(path)}, "test"))["gradient_clipping"] == 1.0
