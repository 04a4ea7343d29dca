"""``vtskip export``: one plain model that computes what the run's model computed."""

import copy
import json
from pathlib import Path

import pytest
import torch
import transformers as hf

import vtskip
from tests.fixtures_stream import run_cli
from tests.train import stand_ins
from vtskip.config import parse
from vtskip.errors import CheckpointError, ConfigError
from vtskip.loading import load
from vtskip.train import TrainConfig, run
from vtskip.train.export import export


def train(values):
    return run(parse(TrainConfig, values, "test"), progress=False)


def trained_model(monkeypatch, values):
    """The run, and the very model that was trained, adapters and all."""
    from vtskip.train import build

    kept = []
    original = build.build_model

    def build_model(*args):
        built = original(*args)
        kept.append(built[0])
        return built

    monkeypatch.setattr(build, "build_model", build_model)
    train(values)
    monkeypatch.undo()
    return kept[0].eval()


def prompt(config):
    words = [i for i in range(4, 20) if i not in (config.frame_id, config.interval_id)]
    ids = torch.tensor([words[:3] + [config.frame_id] * 2 * config.frame_tokens + words[3:6]])
    return {"input_ids": ids, "frames": torch.arange(2 * 32 * 32 * 3).reshape(2, 32, 32, 3).byte()}


def test_adapters_are_merged_and_everything_that_learned_is_there(values, tmp_path, monkeypatch):
    values["lora"] = {"r": 4, "dropout": 0.1, "targets": ["*.q_proj", "*.down_proj", "*lm_head"]}
    values["trains"] = {"vision": False, "names": ["*.norm.weight"]}
    values["optim"]["lr"] = 0.05
    model = trained_model(monkeypatch, values)
    with pytest.raises(CheckpointError, match="an adapter alone: `vtskip export` merges it"):
        load(values["out"])
    summary = export(Path(values["out"]), tmp_path / "out")
    assert summary["method"] == "mod" and summary["model"] == "StreamingLlava"
    whole, handle = load(tmp_path / "out")
    assert handle is not None and handle.method.keep == 0.4
    with torch.no_grad():
        expected, found = (m(**prompt(whole.config)).logits for m in (model, whole))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        plain = copy.deepcopy(model)
        plain.disable_adapter_layers()
        assert (plain(**prompt(whole.config)).logits - expected).abs().max() > 1e-2  # the adapters do something
    assert not [k for k in whole.state_dict() if "lora" in k]


def test_a_full_run_and_a_checkpoint_in_it(values, tmp_path):
    values["save_every"] = 2
    train(values)
    out = Path(values["out"])
    for source, name in ((out, "last"), (out / "checkpoint-2", "second")):
        result = run_cli("export", source, tmp_path / name, "--json")
        assert result.code == 0, result.err
        assert json.loads(result.out)["from"] == str(source)
    last, second, own = (load(folder)[0].state_dict() for folder in (tmp_path / "last", tmp_path / "second", out))
    assert own.keys() == last.keys() and all(torch.equal(own[k], last[k]) for k in own)
    assert any(not torch.equal(second[k], last[k]) for k in last)
    assert {"tokenizer.json", "README.md", "vtskip_model.safetensors"} <= {
        p.name for p in (tmp_path / "last").iterdir()
    }


def test_a_stock_model_with_adapters_and_routers(tmp_path, monkeypatch):
    data = stand_ins.llava_json(tmp_path / "data")
    values = {
        "out": str(tmp_path / "run"),
        "model": {"pretrained": str(stand_ins.llava(tmp_path / "model"))},
        "method": {"name": "pmod"},
        "data": {"kind": "llava", "annotations": str(data / "records.json"), "videos": str(data)},
        "trains": {"vision": False},
        "lora": {"r": 2, "targets": ["*_proj", "lm_head"]},
        "optim": {"steps": 2, "batch_size": 2, "lr": 0.05},
    }
    model = trained_model(monkeypatch, values)
    export(tmp_path / "run", tmp_path / "out")
    handle = vtskip.load_pretrained(tmp_path / "out")
    assert handle.method.name == "pmod"
    text = "USER: <image>\nWhat is shown here ? ASSISTANT:"
    inputs = hf.AutoProcessor.from_pretrained(tmp_path / "out")(
        text=text, images=torch.zeros(3, 32, 32).byte(), return_tensors="pt"
    )
    with torch.no_grad():
        torch.testing.assert_close(handle.model(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_exported_is_named(values, tmp_path):
    with pytest.raises(CheckpointError, match="no model there"):
        export(tmp_path / "none", tmp_path / "out")
    train(values)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    with pytest.raises(ConfigError, match="full: not empty"):
        export(Path(values["out"]), tmp_path / "full")
    (Path(values["out"]) / "train_config.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"no train_config\.yaml there or above it"):
        export(Path(values["out"]), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out.*"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("lora", [False, True])
def test_shards_of_deepspeed_are_joined(values, tmp_path, stage, lora):
    """From two processes' shards comes the model that the run has written itself."""
    pytest.importorskip("deepspeed")
    from tests.train.zero_runs import start

    values |= {"deepspeed": f"zero{stage}", "save_every": 2, "trains": {"vision": False}}
    values["optim"] = {"steps": 2, "batch_size": 1, "lr": 0.05}
    if lora:
        values["lora"] = {"r": 4}
    start(values, tmp_path / "two", 2)
    out = tmp_path / "two" / "run"
    export(out, tmp_path / "written")
    export(out / "checkpoint-2", tmp_path / "joined", zero=True)
    written, joined = (load(tmp_path / name)[0].state_dict() for name in ("written", "joined"))
    assert written.keys() == joined.keys()
    for key, value in written.items():
        torch.testing.assert_close(joined[key], value, atol=1e-5, rtol=1e-4)
