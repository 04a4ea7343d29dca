"""Every shipped training file says what it is for, validates, and does its first step with tiny stand-ins of the same family."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import vtskip.configs
from tests.data.formats import COIN, REDACTED
from tests.data.gray import gray_clip
from tests.train import stand_ins
from vtskip._shipped import find_shipped
from vtskip.config import load_config
from vtskip.eval.training import scorer_of
from vtskip.train import TrainConfig
from vtskip.train.dry_run import dry_run
from vtskip.train.recipe import read_deepspeed

FILES = sorted((Path(vtskip.configs.__path__[0]) / "train").glob("*.yaml"))
TOWER = "model.vision={width: 32, layers: 1, head_width: 16, patch_size: 16, image_size: 32}"
# What sizes of a real model mean on one with 16 rows per image and 6 layers.
SMALLER = {
    "skip_vision_llava": ["method.keep=4", "method.merged=6"],
    "router_tuning_llava_1.5_7b": ["method.count=3"],
}
# The decoder's last layer gives the vision rows that it alone computes to nothing: no gradient for a router there. Gates that
# start at zero and CLS-ranked rows have parameters that a single batch need not reach.
QUIET = ("layers.5.", "router", "summary", "connector", "projector", "k_proj.bias")


def llava_like(folder, make):
    """A stock model with the parts of a first stage: a language model of a shorter vocabulary, a projector in both forms."""
    model = make(folder / "model", layers=6)
    lm = stand_ins.language_model(folder / "lm", vocab_size=24, num_hidden_layers=6)
    shapes = {"0.weight": (32, 16), "0.bias": (32,), "2.weight": (32, 32), "2.bias": (32,)}
    tensors = {f"model.mm_projector.{k}": torch.randn(s) * 0.1 for k, s in shapes.items()}
    torch.save(tensors, folder / "mm_projector.bin")
    named = {f"linear_{1 + int(k[0]) // 2}{k[1:]}": tensors[f"model.mm_projector.{k}"] for k in shapes}
    save_file(named, folder / "connector.safetensors")
    return {"model": model, "lm": lm, "folder": folder}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Stand-ins for what the files name: models, and data in the published formats."""
    root = tmp_path_factory.mktemp("stand-ins")
    ego, coin = root / "ego4d", root / "coin"
    gray_clip(ego / "full_scale" / "a.mp4", fps=10)
    (ego / "all_narrations_redacted.json").write_text(json.dumps(REDACTED))
    (ego / "splits.json").write_text(json.dumps({"train": ["a"]}))
    for name, fps in (("a", 10), ("b", 20)):
        gray_clip(coin / "videos" / f"{name}.mp4", fps=fps)
    (coin / "COIN.json").write_text(json.dumps(COIN))
    return {
        "ego4d_narration": ego,
        "coin": coin,
        "llava": stand_ins.llava_json(root / "llava_data"),
        "lm": stand_ins.language_model(root / "lm", num_hidden_layers=6),
        "llava-1.5": llava_like(root / "llava", stand_ins.llava),
        "llava-v1.6": llava_like(root / "llava_next", stand_ins.llava_next),
    }


def stand_in(path, places, smoke, tmp_path):
    """Overrides that put tiny models and hand-made data in the place of what the file names."""
    config = load_config(TrainConfig, path)
    overrides = [f"out={tmp_path / 'run'}", "precision=fp32", "deepspeed=null", *SMALLER.get(path.stem, [])]
    model = config.model
    if model.pretrained:
        like = places["llava-v1.6" if "v1.6" in model.pretrained else "llava-1.5"]
        overrides.append(f"model.pretrained={like['model']}")
        if model.lm:
            overrides += [f"model.lm={like['lm']}", f"model.connector={like['folder'] / Path(model.connector).name}"]
    elif isinstance(model.lm, str):
        overrides += [TOWER, "model.vision_pretrained=null", f"model.lm={places['lm']}"]
    for key, data in (("data", config.data), ("validation", config.validation)):
        for number, source in enumerate(data if isinstance(data, list) else [data] if data else []):
            at = f"{key}.{number}" if isinstance(data, list) else key
            if source.kind == "synthetic":
                overrides += [f"{at}.root={smoke}", f"{at}.tier=smoke"]
            else:
                overrides += [f"{at}.root={places[source.kind]}"] + ([f"{at}.features=null"] if source.features else [])
            if source.kind == "llava":
                overrides += [f"{at}.annotations=records.json", f"{at}.videos=."]
    if isinstance(config.evaluation, dict):
        overrides += [f"evaluation.data.root={smoke}", "evaluation.data.tier=smoke"]
    return overrides


@pytest.fixture
def base(smoke, tmp_path_factory):
    """What files with ``model.checkpoint`` go on from."""
    from vtskip.train import run

    out = tmp_path_factory.mktemp("base") / "tiny_dense"
    run(
        load_config(
            TrainConfig, find_shipped("tiny_dense", "train"), [f"out={out}", f"data.root={smoke}", "optim.steps=1"]
        ),
        progress=False,
    )
    return out


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_file_does_its_first_step(path, places, smoke, tmp_path, request):
    read_deepspeed(load_config(TrainConfig, path))
    overrides = stand_in(path, places, smoke, tmp_path)
    if load_config(TrainConfig, path).model.checkpoint is not None:
        overrides.append(f"model.checkpoint={request.getfixturevalue('base')}")
    config = load_config(TrainConfig, path, overrides)
    scorer = None if config.evaluation is None else scorer_of(config.evaluation, config.out)
    found = dry_run(config, processes=8, progress=False, scorer=scorer)
    assert config.best is None or scorer is None or config.best.metric in scorer.primary
    assert found["step"]["loss"] > 0 and found["step"]["gradient_norm"] > 0
    silent = [name for name in found["step"]["without_gradient"] if not any(quiet in name for quiet in QUIET)]
    # B of an adapter starts at zero, and so does the gradient of its A.
    assert [name for name in silent if "lora_A" not in name] == []
    assert {row["part"] for row in found["parameters"]} >= {"vision", "connector", "lm"}
    assert found["checkpoint"]["bytes"] > 0 and not (tmp_path / "run").exists()
    assert any(row["vision"] for sample in found["samples"] for row in sample["rows"])
    assert found["estimate"]["flops_ratio"] <= 1


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_file_begins_with_what_a_reader_needs(path):
    head = path.read_text(encoding="utf-8").partition("\nname:")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    for word in ("Purpose:", "Hardware:", "# Run:", "# Expected:"):
        assert word in head, word
    assert f"vtskip train {path.stem}" in head or f"vtskip train configs/train/{path.name}" in head


def test_the_published_recipes_are_what_the_papers_say():
    ego, coin = (load_config(TrainConfig, find_shipped(f"videollm_mod_{name}", "train")) for name in ("ego4d", "coin"))
    assert (ego.lora.r, ego.lora.alpha, ego.lora.dropout, ego.optim.lr, ego.optim.epochs) == (128, 256, 0.05, 2e-4, 2)
    assert (coin.optim.lr, coin.optim.epochs) == (1e-4, 5)
    assert [d.task for d in coin.sources] == ["step", "next", "task", "procedure", "procedure_goal"]
    for config in (ego, coin):
        assert (config.optim.batch_size * config.optim.accumulate, config.optim.warmup) == (8, 0.05)
        assert str(config.deepspeed) == "zero2" and config.sources[0].max_frames == 1200 and config.model.pool == (3, 3)
    for name, size, tokens in (("pmod_llava_1.5_7b", 16, 2048), ("pmod_llava_next_7b", 16, 4096)):
        config = load_config(TrainConfig, find_shipped(name, "train"))
        assert (config.optim.batch_size * config.optim.accumulate, config.max_tokens, config.optim.lr) == (
            size,
            tokens,
            2e-5,
        )
    assert load_config(TrainConfig, find_shipped("skip_vision_llava", "train")).optim.lr == 1e-5
    tuning = load_config(TrainConfig, find_shipped("router_tuning_llava_1.5_7b", "train"))
    assert tuning.trains.model_dump() == {
        "vision": False,
        "connector": False,
        "lm": False,
        "router": True,
        "names": [],
        "frozen": [],
    }
