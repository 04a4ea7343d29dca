"""The smoke tier, made once, the values of a run that takes a second, and runs in one process to compare others with."""

import json

import pytest


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """Folder of the synthetic smoke tier."""
    from vtskip.data.synthetic import make

    return make("smoke", tmp_path_factory.mktemp("smoke"), progress=False)


@pytest.fixture
def values(smoke, tmp_path):
    """Values of a TrainConfig: three steps of a tiny model with ``mod`` routers on the smoke tier."""
    from tests.train.runs import tiny_values

    return tiny_values(smoke, tmp_path / "run")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """``alone(values)`` trains in one process, once per model, method and adapter: its folder and what it saw."""
    from tests.train.zero_runs import start

    done = {}

    def train(values):
        key = json.dumps([values["model"], values["method"], values.get("lora")])
        if key not in done:
            folder = tmp_path_factory.mktemp("one")
            done[key] = folder, start(values, folder, 1)[0]
        return done[key]

    return train
