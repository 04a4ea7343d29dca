"""Runs of stock models: in full, with adapters, by patterns; what they save is what was trained, and goes on from there."""

import json
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

import vtskip
from tests.train import stand_ins
from vtskip.config import parse
from vtskip.errors import VtskipError
from vtskip.train import TrainConfig, run


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    return stand_ins.llava(folder / "model"), stand_ins.llava_json(folder / "data")


@pytest.fixture
def values(llava, tmp_path):
    model, data = llava
    return {
        "out": str(tmp_path / "run"),
        "model": {"pretrained": str(model)},
        "method": {"name": "pmod"},
        "data": {"kind": "llava", "annotations": str(data / "records.json"), "videos": str(data)},
        "trains": {"vision": False},
        "optim": {"steps": 3, "batch_size": 2, "lr": 0.01},
        "log_every": 1,
    }


@pytest.fixture
def stream_values(smoke):
    """A StreamingLlava with ``mod`` routers on clips."""
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return {
        "method": {"name": "mod", "keep": 0.4},
        "model": {
            "vision": {"width": 32, "layers": 1, "head_width": 16, "patch_size": 16, "image_size": 32},
            "pool": [2, 2],
            "lm": {"model_type": "llama", **size},
            "tokenizer": "words",
        },
        "data": {"kind": "synthetic", "root": str(smoke), "tier": "smoke", "split": "train"},
        "optim": {"steps": 2, "batch_size": 2, "lr": 0.01},
        "log_every": 1,
    }


def train(values, resume="never"):
    return run(parse(TrainConfig, values, "test"), resume=resume, progress=False)


def losses(out):
    lines = [json.loads(line) for line in (Path(out) / "train_log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_a_full_run_loads_as_a_stock_model_with_its_method(values, llava):
    summary = train(values)
    out = Path(values["out"])
    assert {"config.json", "model.safetensors", "tokenizer.json", "vtskip_model.safetensors"} <= {
        p.name for p in out.iterdir()
    }
    handle = vtskip.load_pretrained(out)
    assert handle.method.name == "pmod" and summary["samples"] == 4
    assert hf.AutoProcessor.from_pretrained(out).chat_template == stand_ins.VICUNA
    before, after = (load_file(folder / "model.safetensors") for folder in (llava[0], out))
    assert before.keys() == after.keys()  # the names of stock checkpoints, without routers
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert any("projector" in k for k in changed) and any("language_model" in k for k in changed)
    assert not [k for k in changed if "vision_tower" in k]
    routers = load_file(out / "vtskip_model.safetensors")
    # They start at zero. Nothing reads the vision rows that leave the last layer, so its router learns nothing.
    assert {k for k, v in routers.items() if v.any()} == {k for k in routers if not k.startswith("layers.3")}


@pytest.mark.parametrize("lora", [False, True])
def test_resumed_equals_uninterrupted(values, tmp_path, lora):
    if lora:
        values["lora"] = {"r": 4, "dropout": 0.0}
    values["optim"]["steps"], values["save_every"] = 4, 2
    train(values)
    whole = losses(values["out"])
    again = tmp_path / "again"
    train(values | {"out": str(again)}, resume=Path(values["out"]) / "checkpoint-2")
    assert losses(again) == whole[2:]


def test_lora_saves_adapters_and_what_learned_beside_them(values, llava):
    values["lora"] = {"r": 4, "targets": ["*.q_proj", "lm_head"]}
    values["trains"] = {"vision": False, "names": ["*.norm.weight"]}
    train(values)
    out = Path(values["out"])
    assert not (out / "model.safetensors").exists()
    adapter, beside = load_file(out / "adapter_model.safetensors"), load_file(out / "trained.safetensors")
    assert len(adapter) == 2 * (4 + 1) and all(".lora_" in k for k in adapter)
    assert {k.rpartition(".")[0].rpartition(".")[2] for k in beside} == {"linear_1", "linear_2", "norm"}
    from peft import PeftModel

    plain = hf.AutoModelForImageTextToText.from_pretrained(llava[0], dtype=torch.float32)
    PeftModel.from_pretrained(plain, out)  # PEFT's own form


def test_patterns_choose_what_learns_and_how_fast(values, llava):
    from vtskip.train.build import build_model
    from vtskip.train.parts import parameter_groups

    values["trains"] = {
        "vision": False,
        "connector": False,
        "lm": False,
        "names": ["*layers.3*"],
        "frozen": ["*.mlp.*"],
    }
    values["optim"] |= {"lr": 1e-4, "lrs": {"router": 1e-2, "*.q_proj.*": 1e-3}}
    config = parse(TrainConfig, values, "test")
    model, _, _ = build_model(config, [])
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all("layers.3" in name or "router" in name for name in named) and not any("mlp" in name for name in named)
    rates = {id(p): group["lr"] for group in parameter_groups(model, config.optim) for p in group["params"]}
    assert {name: rates[id(p)] for name, p in named.items()} == {
        name: 1e-2 if "router" in name else 1e-3 if "q_proj" in name else 1e-4 for name in named
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trains": {"names": ["*.embed_token.*"]}}, "trains.names.*did you mean 'embed_tokens'"),
        ({"trains": {"frozen": ["*.mlpp.*"]}}, "trains.frozen.*did you mean 'mlp'"),
        ({"lora": {"targets": ["*.q_prj"]}}, "lora.targets.*did you mean 'q_proj'"),
        ({"lora": {}, "trains": {"lm": True}}, "leave one of them out"),
        ({"lora": {"lora_alpha": 1}}, "lora.alpha"),
        ({"optim": {"lrs": {"*.q_prjo.*": 1e-3}}}, "optim.lrs.*did you mean 'q_proj'"),
        (
            {"optim": {"lrs": {"vision": 1e-3}}},
            "no parameter of this part learns; those that do: connector, lm, router",
        ),
        ({"model": {"pretrained": "/nowhere"}}, "model.pretrained '/nowhere': cannot be loaded"),
        ({"model": {"pretrained": "x", "pool": [2, 2]}}, "'pretrained' is a whole model, without pool"),
        ({"model": {"revision": "x", "lm": "y"}}, "revision belong to 'pretrained'"),
        ({"augment": {"wrong": 0.1}}, "are about streams"),
        ({"max_tokens": 8}, "images alone are longer than max_tokens 8"),
    ],
)
def test_faults_are_named(values, change, message):
    with pytest.raises(VtskipError, match=message):
        train(values | change)
    assert not Path(values["out"]).exists()


def test_a_second_stage_takes_language_model_and_connector_from_elsewhere(values, llava, tmp_path):
    """LLaVA's second stage: a plain language model of a shorter vocabulary, and a connector of the first stage."""
    from safetensors.torch import save_file

    from vtskip.train.sections import ModelRecipe
    from vtskip.train.stock import load_stock

    lm = stand_ins.language_model(tmp_path / "lm", vocab_size=20)
    joint = {f"multi_modal_projector.linear_{i}.{k}": torch.randn(s) for i in (1, 2) for k, s in shapes(i).items()}
    save_file(joint, tmp_path / "stage1.safetensors")
    model, _ = load_stock(
        ModelRecipe(pretrained=str(llava[0]), lm=str(lm), connector=str(tmp_path / "stage1.safetensors"))
    )
    donor = hf.AutoModelForCausalLM.from_pretrained(lm)
    own = model.get_input_embeddings().weight
    assert torch.equal(own[:20], donor.get_input_embeddings().weight) and len(own) > 20
    state = model.get_decoder().state_dict()
    assert all(torch.equal(state[k], v) for k, v in donor.get_decoder().state_dict().items() if "embed" not in k)
    named = dict(model.named_parameters())
    assert all(torch.equal(next(p for n, p in named.items() if n.endswith(k)), v) for k, v in joint.items())
    with pytest.raises(VtskipError, match=r"model.lm .*: .* is \[.*\] there, \[.*\] in model.pretrained"):
        load_stock(
            ModelRecipe(pretrained=str(llava[0]), lm=str(stand_ins.language_model(tmp_path / "w", hidden_size=16)))
        )


def shapes(i):
    return {"weight": (32, 16 if i == 1 else 32), "bias": (32,)}


@pytest.mark.parametrize("kind", ["stock", "stream"])
def test_bf16_beside_adapters_halves_what_is_frozen_and_nothing_else(request, values, kind, tmp_path, monkeypatch):
    """Weights that learn, routers among them, stay in fp32; the loss is that of fp32 within bf16's error."""
    from vtskip.train import build

    if kind == "stream":
        out = values["out"]
        values = request.getfixturevalue("stream_values") | {"out": out, "trains": {"vision": False}}
    values["lora"] = {"r": 4}
    kept = []
    original = build.add_lora
    monkeypatch.setattr(build, "add_lora", lambda *a: kept.append(original(*a)) or kept[-1])
    train(values | {"out": str(tmp_path / "full")})
    train(values | {"precision": "bf16"})
    assert losses(values["out"])[0] == pytest.approx(losses(tmp_path / "full")[0], rel=0.02)
    for name, parameter in kept[1].named_parameters():
        learns = parameter.requires_grad or "router" in name
        assert parameter.dtype == (torch.float32 if learns else torch.bfloat16), name
    from vtskip.train.dry_run import dry_run

    again = values | {"precision": "bf16", "out": str(tmp_path / "dry"), "gradient_checkpointing": True}
    assert dry_run(parse(TrainConfig, again, "test"), progress=False)["step"]["loss"] > 0
