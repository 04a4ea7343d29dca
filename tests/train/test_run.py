"""Whole runs of a tiny model on real clips: what they write, that it loads again, that a resumed run is the same run."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vtskip.config import parse
from vtskip.data.collate import StreamCollator
from vtskip.errors import ConfigError, VideoError, VtskipError
from vtskip.loading import load
from vtskip.saving import method_state
from vtskip.template import StreamTemplate
from vtskip.train import TrainConfig, run


def train(values, resume=False):
    return run(parse(TrainConfig, values, "test"), resume=resume, progress=False)


def log(out):
    return [json.loads(line) for line in (Path(out) / "train_log.jsonl").read_text().splitlines()]


def losses(out):
    return {line["step"]: line["loss"] for line in log(out) if "loss" in line}


def weights(folder):
    return load_file(Path(folder) / "model.safetensors") | load_file(Path(folder) / "vtskip_model.safetensors")


def same(a, b):
    assert a.keys() == b.keys()
    return [k for k in a if not torch.equal(a[k], b[k])]


def moved(a, b):
    """Parameters that differ by more than the trace of a vanishing learning rate."""
    return [k for k in a if (a[k] - b[k]).abs().max() > 1e-20]


def one_batch(values, folder, model):
    from transformers import AutoTokenizer

    from vtskip.data import DataConfig, build

    samples = build(DataConfig(**values["data"] | {"split": "test"}), progress=False)
    template = StreamTemplate.from_config(AutoTokenizer.from_pretrained(folder), model.config)
    return StreamCollator(template, model.config.image_size, model.config.pad_token_id)(samples)


@pytest.fixture
def trained(values, monkeypatch):
    """The result of a run, with the very model that was trained."""
    from vtskip.train import build

    kept = []
    original = build.choose_trained
    monkeypatch.setattr(build, "choose_trained", lambda model, trains: kept.append(model) or original(model, trains))
    return train(values), kept[0]


def test_a_run_writes_its_folder(values, trained):
    summary, _ = trained
    out = Path(values["out"])
    assert summary["steps"] == 3 and summary["samples"] == 8
    expected = {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "train_config.yaml",
        "train_log.jsonl",
        "vtskip_config.json",
        "vtskip_model.safetensors",
    }
    assert expected <= {p.name for p in out.iterdir()}
    assert list(losses(out)) == [1, 2, 3]
    assert all(line["seconds"] >= 0 for line in log(out))
    assert not [k for k in load_file(out / "model.safetensors") if ".vtskip." in k]
    config = json.loads((out / "config.json").read_text())
    assert (config["system_prompt"], config["instruction"]) == ("You see it.", "Narrate.")
    assert json.loads((out / "vtskip_config.json").read_text())["method"]["keep"] == 0.4


def test_the_saved_model_equals_the_trained_one(values, trained):
    _, model = trained
    loaded, handle = load(values["out"])
    assert handle is not None and handle.method.name == "mod"
    batch = one_batch(values, values["out"], loaded)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, model.eval()(**batch).logits, atol=0, rtol=0)


def test_every_part_learns_routers_too(values, trained, tmp_path):
    _, model = trained
    values["out"], values["optim"]["lr"] = str(tmp_path / "still"), 1e-30
    train(values)
    before, after = weights(tmp_path / "still"), weights(tmp_path / "run")
    unchanged = before.keys() - moved(before, after)
    # The bias of a router's score, like the key bias of attention, may move next to nothing; weights have to.
    assert not [k for k in unchanged if not k.endswith("bias")]
    assert set(method_state(model)) == {"layers.1.router.weight", "layers.1.router.bias"}


def test_frozen_parts_stay(values, tmp_path):
    values["optim"]["lr"] = 1e-30
    train(values)
    values["out"], values["optim"]["lr"] = str(tmp_path / "frozen"), 0.01
    values["trains"] = {"vision": False, "lm": False}
    train(values)
    changed = moved(weights(tmp_path / "run"), weights(tmp_path / "frozen"))
    assert changed and all(k.startswith(("connector.", "layers.1.router")) for k in changed)


def test_rates_per_part(values, tmp_path):
    values["optim"]["lr"] = 1e-30
    train(values)
    values["out"], values["optim"]["lrs"] = str(tmp_path / "rates"), {"router": 0.1}
    train(values)
    changed = moved(weights(tmp_path / "run"), weights(tmp_path / "rates"))
    assert changed and all(k.startswith("layers.1.router") for k in changed)


def test_a_dense_run_saves_no_method(values):
    values["method"] = None
    train(values)
    assert not (Path(values["out"]) / "vtskip_config.json").exists()
    assert load(values["out"])[1] is None


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_equals_an_uninterrupted_one(values, tmp_path, accumulate):
    values["optim"] |= {"steps": 4, "accumulate": accumulate}
    values["save_every"] = 2
    train(values)
    out, again = Path(values["out"]), tmp_path / "again"
    again.mkdir()
    shutil.copytree(out / "checkpoint-2", again / "checkpoint-2")
    shutil.copytree(out / "checkpoint-4", again / "checkpoint-3")
    (again / "checkpoint-3" / "trainer_state.json").unlink()  # its writing was interrupted
    for name in ("train_config.yaml", "train_log.jsonl"):  # the log has lines behind the checkpoint
        shutil.copy(out / name, again / name)
    with (again / "train_log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # and its last one is cut short
    values["out"] = str(again)
    summary = train(values, resume=True)
    assert summary["steps"] == 4
    assert not same(weights(out), weights(again))
    assert losses(again) == losses(out) and list(losses(again)) == [1, 2, 3, 4]


def test_a_resumed_run_has_to_be_the_same_run(values):
    values["save_every"] = 1
    train(values)
    values["method"] = {"name": "mod", "keep": 0.6}
    with pytest.raises(VtskipError, match="the run to resume has method"):
        train(values, resume=True)


def test_training_goes_on_from_a_checkpoint_with_its_routers(values, tmp_path):
    train(values)
    first = weights(values["out"])
    values |= {"model": {"checkpoint": values["out"]}, "method": None, "out": str(tmp_path / "second")}
    values["optim"]["lr"] = 1e-30
    train(values)
    assert not same(first, weights(tmp_path / "second"))
    values |= {"method": {"name": "mod", "keep": 0.8}, "out": str(tmp_path / "third")}
    train(values)
    assert not same(first, weights(tmp_path / "third"))
    assert load(tmp_path / "third")[1].method.keep == 0.8


@pytest.mark.parametrize("tie", [False, True])
def test_a_language_model_from_a_folder_keeps_its_weights(values, tmp_path, tie):
    from transformers import LlamaConfig, LlamaForCausalLM

    from vtskip.data.tokenizer import build_word_tokenizer

    tokenizer = build_word_tokenizer(["C cuts the red cup"])
    tokenizer.add_special_tokens({"eos_token": "</s>"})
    sizes = {k: v for k, v in values["model"]["lm"].items() if k != "model_type"}
    torch.manual_seed(1)
    lm = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=tie, **sizes))
    lm.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    values["model"] |= {"lm": str(tmp_path / "lm"), "tokenizer": None}
    values["trains"] = {"lm": False}
    train(values)
    model, _ = load(values["out"])
    for name, weight in lm.state_dict().items():
        torch.testing.assert_close(model.language_model.get_parameter(name), weight, atol=0, rtol=0)


def test_a_connector_of_a_first_stage_is_taken(values, tmp_path):
    """By its names in another run's model, or in the order of a published projector; what does not fit is named."""
    values["trains"] = {"connector": False}
    values["model"]["connector"] = str(tmp_path / "connector.safetensors")
    own = {
        name: torch.randn(shape) for name, shape in (("0.weight", (32, 32)), ("0.bias", (32,)), ("2.weight", (32, 32)))
    }
    own["2.bias"] = torch.randn(32)
    for prefix in ("connector", "model.mm_projector"):
        save_file({f"{prefix}.{name}": tensor for name, tensor in own.items()}, values["model"]["connector"])
        values["out"] = str(tmp_path / prefix)
        train(values)
        found = weights(values["out"])
        assert all(torch.equal(found[f"connector.{name}"], tensor) for name, tensor in own.items())
    save_file({"connector.0.weight": torch.zeros(8, 8)}, values["model"]["connector"])
    with pytest.raises(
        ConfigError, match=r"model.connector .*: connector.0.weight \[32, 32\] is not there once, but .*8, 8"
    ):
        train(values | {"out": str(tmp_path / "other")})


def test_validation_is_logged(values):
    values["validation"], values["eval_every"] = values["data"] | {"split": "val"}, 2
    summary = train(values)
    assert [line["step"] for line in log(values["out"]) if "eval_loss" in line] == [2, 3]
    assert summary["eval_loss"] > 0


def test_gradient_checkpointing_gives_the_same_run(values, tmp_path):
    train(values)
    values["out"], values["gradient_checkpointing"] = str(tmp_path / "less"), True
    train(values)
    for step, loss in losses(tmp_path / "run").items():
        assert losses(tmp_path / "less")[step] == pytest.approx(loss, rel=1e-5)


def test_a_run_that_fails_leaves_nothing_behind(values, monkeypatch):
    def broken(*args, **kwargs):
        raise VideoError("clip.mp4: truncated")

    monkeypatch.setattr("vtskip.data.collate.read_frames", broken)
    with pytest.raises(VideoError):
        train(values)
    assert not Path(values["out"]).exists()
