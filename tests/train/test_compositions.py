"""Training with several methods: from the file and its overrides to saved routers, and what a later command may add to them."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from tests.train.runs import log, weights
from vtskip.config import load_config
from vtskip.errors import ConfigError
from vtskip.loading import load
from vtskip.methods import get_method
from vtskip.saving import method_state
from vtskip.streaming.loading import load_stream
from vtskip.train import TrainConfig, run
from vtskip.train.dry_run import dry_run

DOC = Path(__file__).parents[2] / "docs" / "methods-together.md"
EVERY = {"kind": "constant"}
MOD, PMOD = (
    {"name": "mod", "keep": 0.4, "schedule": EVERY},
    {"name": "pmod", "schedule": EVERY | {"keep": 0.5, "first": 1}},
)


@pytest.fixture
def config(values, tmp_path):
    """``config(method, *overrides)``: of a YAML file with that method."""

    def read(method, *overrides):
        path = tmp_path / "train.yaml"
        path.write_text(yaml.safe_dump(values | {"method": method}))
        return load_config(TrainConfig, path, list(overrides))

    return read


@pytest.fixture(scope="module")
def trained(smoke, tmp_path_factory):
    """Three steps with two routers in the last of two layers, ``keep`` falling to what an override says."""
    from tests.train.runs import tiny_values

    folder = tmp_path_factory.mktemp("composed")
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(tiny_values(smoke, folder / "run") | {"method": [MOD, PMOD, {"name": "skip_ffn"}]}))
    overrides = ["method.0.keep=0.3", "keep_warmup={steps: 3, start: 0.9}", "optim.lrs={'*.methods.1.*': 0.1}"]
    config = load_config(TrainConfig, path, overrides)
    run(config, progress=False)
    return config.out


def test_routers_of_both_methods_learn_and_are_saved(trained):
    model, handle = load(trained)
    assert [m.name for m in handle.method.methods] == ["mod", "pmod", "skip_ffn"] and handle.method.methods[
        0
    ].keep == 0.3
    state = method_state(model)
    names = ["layers.0.methods.0.router", "layers.1.methods.0.router", "layers.1.methods.1.router"]
    assert sorted(state) == [f"{name}.{part}" for name in names for part in ("bias", "weight")]
    assert all(torch.equal(state[key], weights(trained)[key]) for key in state)
    fresh = get_method(handle.method).planners(handle.shape)
    for i, place in ((0, "0"), (1, "0"), (1, "1")):
        before = fresh[i].methods[place].router.weight
        moved = (state[f"layers.{i}.methods.{place}.router.weight"] - before).abs().max()
        assert moved > (0.05 if place == "1" else 1e-3)  # each at its own rate


def test_what_is_kept_follows_the_warmup_of_both(trained):
    """Before the second step keep is 0.7 for mod; pmod's 0.5 is warmed up, too, and skip_ffn's is in no log line."""
    first, second, third = (line["kept/0"] for line in log(trained))
    assert first > second > third > 0.3
    assert all(line["kept/1"] <= line["kept/0"] and line["router_grad_norm"] > 0 for line in log(trained))


def test_a_trained_router_goes_on_beside_methods_without_parameters(trained):
    checkpoint = load_stream(trained, device="cpu")
    saved = weights(trained)
    assert checkpoint.use([{"name": "shortv", "layers": []}, MOD, {"name": "early_exit", "layer": 1}, PMOD])
    own = method_state(checkpoint.model)
    assert torch.equal(own["layers.1.methods.3.router.weight"], saved["layers.1.methods.1.router.weight"])
    assert torch.equal(own["layers.0.methods.1.router.bias"], saved["layers.0.methods.0.router.bias"])
    assert not checkpoint.use([PMOD, MOD])  # its routers would be taken for those of the other method
    assert not checkpoint.use(MOD)


def test_a_composition_around_a_single_trained_method(config):
    """Routers of a method that was trained alone serve it among others, and the other way round."""
    plain = config(MOD, "optim.steps=1")
    run(plain, progress=False)
    checkpoint = load_stream(plain.out, device="cpu")
    assert checkpoint.use([{"name": "skip_ffn", "schedule": {"kind": "list", "layers": []}}, MOD])
    state = method_state(checkpoint.model)
    assert torch.equal(state["layers.1.methods.1.router.weight"], weights(plain.out)["layers.1.router.weight"])
    assert checkpoint.use(MOD) and not checkpoint.use([MOD, PMOD])


def test_the_example_of_the_text_does_its_first_step(config):
    first, *_ = re.findall(r"```yaml\n(.*?)```", DOC.read_text(), re.DOTALL)
    method = yaml.safe_load(first)["method"]
    found = dry_run(config(method, "method.methods.0.keep=0.3"), processes=1, progress=False)
    assert found["step"]["loss"] > 0 and found["estimate"]["flops_ratio"] < 1


def test_faults_are_found_before_anything_is_loaded(config):
    with pytest.raises(ConfigError, match=r"number 1: .*unknown key 'kep'; did you mean 'keep'"):
        config([MOD, {"name": "fastv", "kep": 0.5}])
    with pytest.raises(ConfigError, match=r"method\.2\.keep"):
        config([MOD, PMOD], "method.2.keep=0.5")
