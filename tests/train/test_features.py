"""Training on cached features of the tower: the same losses as on the videos, and every mismatch refused."""

import copy
import json

import pytest
import torch
import yaml

from vtskip.cli.main import main
from vtskip.config import parse
from vtskip.data import DataConfig, build
from vtskip.data.collate import StreamCollator
from vtskip.data.features import FeatureCache, FeatureSpec
from vtskip.data.types import Sample
from vtskip.errors import ConfigError, DataError
from vtskip.models.encoder_facts import encoder_facts
from vtskip.streaming.loading import load_stream
from vtskip.train import TrainConfig, run


def train(values):
    return run(parse(TrainConfig, values, "test"), progress=False)


def losses(out):
    lines = [json.loads(line) for line in (out / "train_log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture
def base(values, tmp_path):
    """Values of a run that goes on from a checkpoint, and the checkpoint."""
    train(values | {"out": str(tmp_path / "base"), "optim": {"steps": 1, "batch_size": 2, "lr": 0.01}})
    further = copy.deepcopy(values) | {"model": {"checkpoint": str(tmp_path / "base")}, "trains": {"vision": False}}
    further["optim"]["steps"] = 4
    return further, tmp_path / "base"


def encoded(values, checkpoint, tmp_path, *arguments):
    """The configuration written to a file, its features made by the program."""
    config = tmp_path / "train.yaml"
    config.write_text(yaml.safe_dump(values))
    return main(["data", "features", str(config), "--model", str(checkpoint), *arguments])


def test_losses_on_features_are_those_on_videos(base, tmp_path, capsys, monkeypatch):
    values, checkpoint = base
    train(values | {"out": str(tmp_path / "videos")})
    cached = copy.deepcopy(values)
    cached["data"]["features"] = str(tmp_path / "features")
    capsys.readouterr()
    assert encoded(cached, checkpoint, tmp_path, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["made"], result["kept"], result["failed"], result["faults"]) == (8, 0, 0, [])
    assert encoded(cached, checkpoint, tmp_path) == 0
    assert "0 videos encoded, 8 were there" in capsys.readouterr().out
    monkeypatch.setattr("vtskip.data.collate.read_frames", lambda *a: pytest.fail("a video was decoded"))
    train(cached | {"out": str(tmp_path / "cached")})
    own, reference = losses(tmp_path / "cached"), losses(tmp_path / "videos")
    assert len(own) == 4 and own == pytest.approx(reference, rel=0, abs=1e-5)
    assert len(set(own)) == 4  # it learns


def test_a_batch_from_the_cache_is_the_batch_from_the_videos(base, tmp_path):
    """Also one that shows nothing, which still has to run the connector."""
    values, folder = base
    values["data"]["features"] = str(tmp_path / "features")
    assert encoded(values, folder, tmp_path, "--dtype", "float32", "--batch", "5") == 0
    checkpoint = load_stream(folder, "cpu")
    model, template = checkpoint.model, checkpoint.template
    cache = FeatureCache(tmp_path / "features", FeatureSpec(fps=2.0, **encoder_facts(model)))
    cache.check()
    samples = build(DataConfig(**values["data"]), progress=False)[:3]
    both = [StreamCollator(template, 32, 0, features=f)(samples) for f in (None, cache)]
    assert "frames" not in both[1] and torch.equal(both[0]["labels"], both[1]["labels"])
    with torch.no_grad():
        direct = model.encode_frames(both[0]["frames"])
        assert torch.allclose(direct, both[1]["frame_features"], atol=1e-6)
        one, other = (model(**batch).loss for batch in both)
    assert abs(float(one) - float(other)) <= 1e-5
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "You see it.", "learn": True}]
    batch = StreamCollator(template, 32, 0, features=cache)([Sample("t", tmp_path, 2, [], talk)])
    assert batch["frame_features"].shape[0] == 0
    model.train()
    model(**batch).loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.connector.parameters())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"trains": {"vision": True}}, "data.features: the vision tower is not run.*set trains.vision=false"),
        ({"validation": "data"}, "validation.features None: has to be data.features"),
        ({"fps": 1.0}, r"no features 1fps_.*present: 2fps_32_1\+2x2_\w+ \(another fps\)"),
        ({"tower": True}, r"no features .* \(another fingerprint\)"),
        ({"folder": True}, "no features .* present: none; make them with: vtskip data features"),
    ],
)
def test_what_does_not_fit_is_refused(base, tmp_path, change, message):
    values, checkpoint = base
    plain = copy.deepcopy(values["data"])
    values["data"]["features"] = str(tmp_path / "features")
    assert encoded(values, checkpoint, tmp_path) == 0
    if "trains" in change:
        values["trains"] = change["trains"]
    if "validation" in change:
        values["validation"] = plain
    if "fps" in change:
        values["data"]["fps"] = 1.0
    if "folder" in change:
        values["data"]["features"] = str(tmp_path / "other")
    if "tower" in change:
        model = load_stream(checkpoint, "cpu").model
        with torch.no_grad():
            next(model.vision_tower.parameters()).add_(1e-3)
        model.save_pretrained(checkpoint)
    with pytest.raises((ConfigError, DataError), match=message):
        train(values)


def test_the_fingerprint_is_of_the_stored_weights(base):
    _, folder = base
    facts = encoder_facts(load_stream(folder, "cpu").model)
    assert facts == encoder_facts(load_stream(folder, "cpu", "float64").model)
    assert facts["layout"] == "1+2x2" and (facts["tokens"], facts["width"], facts["size"]) == (5, 32, 32)
    other = load_stream(folder, "cpu").model
    other.config.image_mean = [0.1, 0.2, 0.3]
    assert encoder_facts(other)["fingerprint"] != facts["fingerprint"]


def test_the_command_names_what_is_missing(base, tmp_path, capsys):
    values, checkpoint = base
    assert encoded(values, checkpoint, tmp_path) == 2
    assert "data has no 'features'; name the folder there or with --out" in capsys.readouterr().err
    assert encoded(values, checkpoint, tmp_path, "--dtype", "float8", "--out", str(tmp_path / "f")) == 2
    assert "dtype 'float8'; did you mean 'float" in capsys.readouterr().err
    assert encoded(values, tmp_path / "none", tmp_path, "--out", str(tmp_path / "f")) == 2
    assert not (tmp_path / "f").exists()


def test_the_tower_may_be_the_one_that_a_runs_file_names(base, tmp_path, capsys):
    """Before there is any model: the features fit the run that starts from the same file of weights."""
    values, folder = base
    weights = tmp_path / "tower.pt"
    torch.save(load_stream(folder, "cpu").model.vision_tower.visual.state_dict(), weights)
    values["model"] = {
        "vision": {"width": 32, "layers": 1, "head_width": 16, "patch_size": 16, "image_size": 32},
        "vision_pretrained": str(weights),
        "pool": [2, 2],
        "lm": {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
        "tokenizer": "words",
    }
    values["data"]["features"] = str(tmp_path / "features")
    assert encoded(values, tmp_path / "train.yaml", tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["made"] == 8
    train(values | {"out": str(tmp_path / "cached")})
    values["data"].pop("features")
    train(values | {"out": str(tmp_path / "videos")})
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "videos"), rel=0, abs=1e-5)
    values["model"]["vision_pretrained"] = None
    values["data"]["features"] = str(tmp_path / "features")
    assert encoded(values, tmp_path / "train.yaml", tmp_path) == 2
    assert "model.vision_pretrained is not given" in capsys.readouterr().err
