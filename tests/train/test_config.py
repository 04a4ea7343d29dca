"""Every fault in a configuration is one clear error before anything is written."""

import json
from pathlib import Path

import pytest

import vtskip.configs
from vtskip._faults import follow
from vtskip.config import load_config, parse
from vtskip.errors import VtskipError
from vtskip.train import TrainConfig, run
from vtskip.train.renamed import NAMES

CONFIGS = Path(vtskip.configs.__path__[0])


def change(values, dotted, value):
    node = values
    *parents, last = dotted.split(".")
    for name in parents:
        node = node[name]
    node[last] = value


@pytest.mark.parametrize("path", sorted((CONFIGS / "train").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_configurations_load(path):
    from vtskip.methods import get_method

    config = load_config(TrainConfig, path)
    if config.method is not None:
        get_method(config.method)


@pytest.mark.parametrize("path", sorted((CONFIGS / "deepspeed").glob("*.json")), ids=lambda p: p.name)
def test_shipped_deepspeed_files_name_their_stage(path):
    settings = json.loads(path.read_text())
    assert settings["zero_optimization"]["stage"] == int(path.stem.removeprefix("zero")[0])
    assert "optimizer" not in settings  # would compile DeepSpeed's own Adam for minutes on a CPU


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optm", {}, "did you mean 'optim'"),
        ("optim.learning_rate", 1, "learning_rate"),
        ("optim.lrs", {"routers": 1.0}, "did you mean 'router'"),
        ("trains", {"conector": False}, "did you mean 'connector'"),
        ("optim.lr", -1, "optim.lr"),
        ("method", "mood", "did you mean 'mod'"),
        ("method", {"name": "mod", "keep": 0.0}, "keep"),
        ("method", {"name": "mod", "keap": 0.5}, "did you mean 'keep'"),
        ("model.lm", {"hidden_size": 8}, "model_type"),
        ("model.lm", "/nowhere", "/nowhere"),
        ("model.lm.hidden_sizes", 8, "did you mean 'hidden_size'"),
        ("model.lm.model_type", "lama", "lama"),
        ("model.tokenizer", None, "tokenizer"),
        ("model.tokenizer", "/nowhere", "model.tokenizer '/nowhere': no tokenizer there"),
        ("model.checkpoint", "/nowhere", "brings its own"),
        ("model", {"checkpoint": "/nowhere"}, "/nowhere: no model there"),
        ("model.vision", "ViT-B-23", "did you mean 'ViT-B-32'"),
        ("trains", dict.fromkeys(["vision", "connector", "lm", "router"], False), "no parameter is left"),
        ("deepspeed", "/nowhere.json", "/nowhere.json: cannot be read"),
        ("data.split", "trian", "did you mean 'train'"),
    ],
)
def test_faults_are_named_and_nothing_is_written(values, key, value, message):
    change(values, key, value)
    with pytest.raises(VtskipError, match=message):
        run(parse(TrainConfig, values, "test"), progress=False)
    assert not Path(values["out"]).exists()


def test_a_damaged_deepspeed_file_is_named(values, tmp_path):
    path = tmp_path / "zero.json"
    path.write_text("{stage: 2")
    values["deepspeed"] = str(path)
    with pytest.raises(VtskipError, match=r"zero\.json: not valid JSON"):
        run(parse(TrainConfig, values, "test"), progress=False)


def test_stage_3_without_a_model_at_the_end_is_refused(values, tmp_path):
    path = tmp_path / "zero.json"
    zero = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": False}
    path.write_text(json.dumps({"zero_optimization": zero}))
    values["deepspeed"] = str(path)
    with pytest.raises(VtskipError, match=r"zero\.json: stage3_gather_16bit.* false: no model could be written"):
        run(parse(TrainConfig, values, "test"), progress=False)


def test_a_folder_that_holds_something_is_not_written_to(values):
    out = Path(values["out"])
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(VtskipError, match=r"not empty \(notes.txt\)"):
        run(parse(TrainConfig, values, "test"), progress=False)
    with pytest.raises(VtskipError, match="no checkpoint to resume from"):
        run(parse(TrainConfig, values, "test"), resume=True, progress=False)
    assert [p.name for p in out.iterdir()] == ["notes.txt"]


def test_the_runs_own_data_may_lie_in_its_folder(values, smoke):
    import shutil

    root = Path(values["out"]) / "deep" / "data"
    shutil.copytree(smoke, root)
    values["data"]["root"], values["optim"]["steps"] = str(root), 1
    assert run(parse(TrainConfig, values, "test"), progress=False)["steps"] == 1


def test_out_may_not_be_a_file(values):
    Path(values["out"]).write_text("")
    with pytest.raises(VtskipError, match="is a file"):
        run(parse(TrainConfig, values, "test"), progress=False)


def test_keys_of_other_programs_are_answered_with_ours(tmp_path):
    """Also where a flat file, as LLaMA-Factory and axolotl have it, lists them beside each other."""
    flat = {"base_model": "model.pretrained", "num_train_epochs": "optim.epochs", "warmup_ratio": "optim.warmup"}
    flat |= {"per_device_train_batch_size": "optim.batch_size", "lora_target": "lora.targets", "lr": "optim.lr"}
    path = tmp_path / "flat.yaml"
    path.write_text("".join(f"{key}: 1\n" for key in flat))
    with pytest.raises(VtskipError) as caught:
        load_config(TrainConfig, path)
    for line, (key, here) in enumerate(flat.items(), 1):
        assert f"{path}:{line}: unknown key {key!r}: here it is {here!r}" in str(caught.value)
    with pytest.raises(VtskipError, match=r"override 'optim.lora_rank=8': .*here it is 'lora.r'"):
        load_config(TrainConfig, CONFIGS / "train" / "tiny_dense.yaml", ["optim.lora_rank=8"])


def test_a_fault_of_a_group_names_the_overrides_inside_it():
    path = CONFIGS / "train" / "composition_tiny.yaml"
    for overrides, said in (
        (["method.0.keep=2"], r"composition_tiny.yaml:\d+ with override 'method.0.keep=2': method: .*keep: got 2"),
        (["optim.warmup=90"], r"composition_tiny.yaml:\d+ with override 'optim.warmup=90': optim: warmup 90"),
        (
            ["method={name: mod}", "method.keep=2"],
            r"^override 'method={name: mod}' with override 'method.keep=2': method:",
        ),
    ):
        with pytest.raises(VtskipError, match=said):
            load_config(TrainConfig, path, overrides)


def test_every_key_that_is_named_instead_is_one():
    for key, here in NAMES.items():
        for name in here.partition(":")[0].split(" and "):
            names = name.split(".")
            held = follow(TrainConfig, tuple(names[:-1]))
            assert name == "--resume" or any(names[-1] in model.model_fields for model in held), key


def test_warmup_is_a_share_or_a_number_of_steps(values, tmp_path):
    values["optim"] |= {"steps": 3, "warmup": 2}
    run(parse(TrainConfig, values, "test"), progress=False)
    rates = [
        json.loads(line).get("learning_rate") for line in (tmp_path / "run/train_log.jsonl").read_text().splitlines()
    ]
    assert rates[:3] == pytest.approx([0.0, 0.005, 0.01])
    for wrong in (1.5, 3, 4):
        values["optim"]["warmup"] = wrong
        with pytest.raises(VtskipError, match=rf"warmup {wrong:g}: accepted: .* whole number below the run's 3"):
            parse(TrainConfig, values, "test")
