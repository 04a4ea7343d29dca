"""A method beside its checkpoint: round trip, and what is refused."""

import json

import pytest
import torch

import vtskip
from tests.tiny import FAMILIES
from vtskip._files import write_atomic
from vtskip.errors import CheckpointError, VtskipError
from vtskip.model_card import CARD_NAME, PICTURE_NAME
from vtskip.runtime.attach import attached
from vtskip.saving import CONFIG_NAME, WEIGHTS_NAME


def trained(name: str = "llava-llama") -> torch.nn.Module:
    model = FAMILIES[name].model(torch.float32)
    vtskip.attach(model, {"name": "mod", "keep": 0.3, "schedule": {"kind": "constant", "first": 1}})
    for key, parameter in model.named_parameters():
        if "vtskip" in key:
            torch.nn.init.normal_(parameter)
    return model


def test_round_trip(tmp_path):
    model, batch = trained(), FAMILIES["llava-llama"].batch(["long", "short"], dtype=torch.float32)
    vtskip.save_pretrained(model, tmp_path)
    other = FAMILIES["llava-llama"].model(torch.float32)
    handle = vtskip.load_pretrained(other, tmp_path)
    assert handle.method == attached(model).method
    with torch.no_grad():
        assert torch.equal(other(**batch).logits, model(**batch).logits)
    names = {p.name for p in tmp_path.iterdir()} - {PICTURE_NAME}
    assert names == {CARD_NAME, CONFIG_NAME, WEIGHTS_NAME}


def test_keys_are_the_same_for_every_family(tmp_path):
    from safetensors import safe_open

    for name in ("llava-llama", "qwen2_5_vl"):
        vtskip.save_pretrained(trained(name), tmp_path / name)
        with safe_open(tmp_path / name / WEIGHTS_NAME, "pt") as file:
            assert sorted(file.keys())[0] == "layers.1.router.bias"


def test_nothing_attached_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no method attached"):
        vtskip.save_pretrained(FAMILIES["llava-llama"].model(torch.float32), tmp_path)


def test_another_base_model_is_refused_and_left_alone(tmp_path):
    vtskip.save_pretrained(trained(), tmp_path)
    other = FAMILIES["llava-qwen2"].model(torch.float32)
    with pytest.raises(CheckpointError, match=r"another base model: text_model_type 'llama' \(this model: 'qwen2'\)"):
        vtskip.load_pretrained(other, tmp_path)
    assert attached(other) is None


@pytest.mark.parametrize("damage", ["config", "json", "weights", "missing", "shape", "method"])
def test_damage_is_named(tmp_path, damage):
    vtskip.save_pretrained(trained(), tmp_path)
    config, weights = tmp_path / CONFIG_NAME, tmp_path / WEIGHTS_NAME
    if damage == "config":
        config.unlink()
    elif damage == "json":
        config.write_text("{")
    elif damage == "weights":
        weights.write_bytes(weights.read_bytes()[:-50])
    else:
        from safetensors.torch import load_file, save_file

        state, values = load_file(weights), json.loads(config.read_text())
        if damage == "missing":
            state.pop("layers.2.router.bias")
        elif damage == "shape":
            state["layers.2.router.weight"] = torch.zeros(1, 7)
        else:
            values["method"]["name"] = "mood"
        save_file(state, weights)
        config.write_text(json.dumps(values))
    model = FAMILIES["llava-llama"].model(torch.float32)
    with pytest.raises(VtskipError, match=str(tmp_path) if damage != "method" else "did you mean 'mod'"):
        vtskip.load_pretrained(model, tmp_path)
    assert attached(model) is None


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
