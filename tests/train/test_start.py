"""Where a run starts: which folders are fit for it, and which differences to a run that goes on are welcome."""

from pathlib import Path

import pytest
from safetensors.torch import save_file

from vtskip.config import parse
from vtskip.errors import CheckpointError, ConfigError
from vtskip.train import TrainConfig
from vtskip.train.start import CONFIG_NAME, as_yaml, find_start, write_config


@pytest.fixture
def config(values):
    return parse(TrainConfig, values, "test")


@pytest.fixture
def begun(config):
    """A run's folder with two checkpoints and one whose writing was interrupted."""
    write_config(config)
    for step in (5, 10, 15):
        (config.out / f"checkpoint-{step}").mkdir()
        if step < 15:
            (config.out / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    return config.out


def test_a_new_folder_starts_anew(config):
    assert find_start(config, "never") is None and find_start(config, "auto") is None


def test_auto_goes_on_from_the_newest_and_never_refuses(config, begun):
    assert find_start(config, "auto") == begun / "checkpoint-10"
    with pytest.raises(ConfigError, match=r"not empty \(checkpoint-10, .*--resume auto"):
        find_start(config, "never")


def test_auto_starts_anew_where_a_run_ended_before_its_first_checkpoint(config):
    write_config(config)
    (config.out / "train_log.jsonl").write_text("")
    assert find_start(config, "auto") is None
    (config.out / "thesis.txt").write_text("")
    with pytest.raises(ConfigError, match=r"not empty \(thesis.txt\), and no checkpoint"):
        find_start(config, "auto")


def test_a_path_is_a_checkpoint_or_a_run(config, begun, tmp_path):
    assert find_start(config, begun / "checkpoint-5") == begun / "checkpoint-5"
    other = config.model_copy(update={"out": tmp_path / "other"})
    assert find_start(other, begun) == begun / "checkpoint-10"
    other.out.mkdir()
    (other.out / "x").write_text("")
    with pytest.raises(ConfigError, match=r"not empty .* is of another run"):
        find_start(other, begun)
    with pytest.raises(ConfigError, match="--resume atuo: no checkpoint there; did you mean 'auto'"):
        find_start(config, "atuo")


@pytest.mark.parametrize(
    "change",
    [
        "optim.steps=99",
        "optim.epochs=3",
        "log_every=7",
        "save_every=9",
        "eval_every=9",
        "evaluation=other.yaml",
        "workers=2",
        "name=b",
        "report_to=[tensorboard]",
    ],
)
def test_length_and_logging_may_differ(values, begun, change):
    from vtskip.config import apply_overrides

    assert find_start(parse(TrainConfig, apply_overrides(values, [change], TrainConfig), "test"), "auto") is not None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("optim.lr=0.5", "has optim.lr 0.01, this configuration 0.5"),
        ("method.keep=0.9", "has method.keep 0.4, this configuration 0.9"),
        ("data.split=val", "has data.split 'train', this configuration 'val'"),
        ("data.fps=4", "has data.fps 2.0, this configuration 4.0"),
        ("seed=3", "has seed 0, this configuration 3"),
        ("lora={r: 4}", "has lora None, this configuration None|has lora.r None, this configuration 4"),
        ("model.pool=[1, 1]", r"has model.pool \[2, 2\], this configuration \[1, 1\]"),
        ("optim.batch_size=1", "has optim.batch_size 2, this configuration 1"),
        ("precision=bf16", "has precision 'fp32', this configuration 'bf16'"),
    ],
)
def test_anything_else_is_named_with_both_values(values, begun, change, said):
    from vtskip.config import apply_overrides

    with pytest.raises(ConfigError, match=said):
        find_start(parse(TrainConfig, apply_overrides(values, [change], TrainConfig), "test"), "auto")


def test_another_number_of_processes_is_refused(config, begun, monkeypatch):
    for step in (5, 10):
        save_file({}, begun / f"checkpoint-{step}" / "run_state_0.safetensors", {"trainer": '{"world": 2}'})
    with pytest.raises(ConfigError, match=r"checkpoint-10: written by 2 processes, and this run has 1 .*--nproc 2"):
        find_start(config, "auto")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert find_start(config, "auto") == begun / "checkpoint-10"
    (begun / "checkpoint-10" / "run_state_0.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"checkpoint-10/run_state_0.safetensors: cannot be read"):
        find_start(config, "auto")


def test_what_is_written_can_be_run_again(values, config):
    from vtskip.config import load_config

    write_config(config)
    assert as_yaml(load_config(TrainConfig, config.out / CONFIG_NAME)) == as_yaml(config)
    several = parse(TrainConfig, values | {"data": [values["data"], values["data"] | {"weight": 0.5}]}, "test")
    write_config(several)
    again = load_config(TrainConfig, Path(values["out"]) / CONFIG_NAME)
    assert as_yaml(again) == as_yaml(several) and again.sources[1].weight == 0.5
