"""Every configuration file that is shipped is read by what its folder stands for."""

import json
import re
from pathlib import Path

import pytest

from vtskip.config import load_config

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(p for folder in ("configs", "data", "eval", "train", "vtskip") for p in (ROOT / folder).rglob("*.[yj]*"))
NAMES = [p.relative_to(ROOT).as_posix() for p in FILES if p.suffix in (".yaml", ".yml", ".json")]


def load_train(path: Path):
    from vtskip.methods import get_method
    from vtskip.train.config import TrainConfig
    from vtskip.train.recipe import read_deepspeed

    config = load_config(TrainConfig, path)
    if config.method is not None:
        get_method(config.method)
    read_deepspeed(config)
    return config


def load_eval(path: Path):
    from vtskip.eval.config import EvalConfig
    from vtskip.methods import get_method

    config = load_config(EvalConfig, path)
    if config.method is not None:
        get_method(config.method)
    return config


def load_task(path: Path):
    from vtskip.eval.tasks import load_task, scorer_factory

    task = load_task(path.stem)
    assert callable(scorer_factory(task.scores))
    return task


def load_method(path: Path):
    from vtskip.methods import get_method

    return get_method(path)


def load_calibrate(path: Path):
    from vtskip.calibrate.config import CalibrateConfig

    return load_config(CalibrateConfig, path)


def load_data(path: Path):
    from vtskip.data.sections import data_sections

    return data_sections(path)["data"]


def load_bench(path: Path):
    from vtskip.eval.bench import load

    return load(path)


def load_sweep(path: Path):
    from vtskip.eval.sweep import SweepConfig
    from vtskip.methods import get_method

    config = load_config(SweepConfig, path)
    for method in config.methods:
        get_method(method)
    return config


def load_stream(path: Path):
    from vtskip.methods import get_method
    from vtskip.streaming.config import stream_config

    config = stream_config(path, [], {})
    if config.method is not None:
        get_method(config.method)
    return config


def load_deepspeed(path: Path):
    from vtskip.train.config import TrainConfig
    from vtskip.train.recipe import read_deepspeed

    config = load_config(TrainConfig, ROOT / "configs/train/demo_mod.yaml", [f"deepspeed={path}", "method=null"])
    settings = read_deepspeed(config)
    assert settings is not None
    assert settings["zero_optimization"]["stage"] in (1, 2, 3)
    return settings


LOADERS = {
    "configs/train": load_train,
    "configs/eval": load_eval,
    "configs/methods": load_method,
    "eval/tasks": load_task,
    "configs/bench": load_bench,
    "configs/data": load_data,
    "configs/calibrate": load_calibrate,
    "configs/sweep": load_sweep,
    "configs/deepspeed": load_deepspeed,
    "configs/stream": load_stream,
    "eval/records": lambda path: json.loads(path.read_text(encoding="utf-8")),
}


def test_there_are_files():
    assert {Path(name).parent.as_posix() for name in NAMES} >= set(LOADERS) - {"eval/records"}


@pytest.mark.parametrize("name", NAMES)
def test_file_is_read_by_what_its_folder_stands_for(name):
    folder = Path(name).parent.as_posix()
    assert folder in LOADERS, f"{name}: no loader for {folder}; add one here, or remove the file"
    assert LOADERS[folder](ROOT / name)


@pytest.mark.parametrize("name", [n for n in NAMES if n.endswith(".yaml")])
def test_file_says_what_it_is_for(name):
    assert (ROOT / name).read_text(encoding="utf-8").startswith("# ")


def test_files_named_in_texts_and_commands_exist():
    texts = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "Makefile", *(ROOT / "configs").rglob("*.yaml")]
    named = {m for t in texts for m in re.findall(r"configs/[\w/.-]+\.(?:yaml|json)", t.read_text(encoding="utf-8"))}
    assert named
    assert [n for n in sorted(named) if not (ROOT / n).is_file()] == []
