"""The smoke tier, made once, and the values of a run that takes a second."""

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
