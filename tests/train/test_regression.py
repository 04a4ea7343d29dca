"""Recorded losses of short runs, and that every method's loss falls on the generated clips."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.methods_matrix import MATRIX
from tests.train.runs import losses, tiny_values, train

RECORDED = Path(__file__).with_name("regression_losses.json")
# Another BLAS, thread count or vector width rounds otherwise; twenty steps of Adam make more of it. On one machine the runs
# are equal to the last bit.
TOLERANCE = 2e-3
SPECS = {row.name: row.spec for row in MATRIX} | {
    "mod": {"name": "mod", "keep": 0.4, "schedule": {"kind": "list", "layers": [0, 2]}},
    "gamma_mod": {"name": "gamma_mod", "keep": 0.4, "schedule": {"kind": "list", "layers": [1, 2]}},
}


def four_layers(values, method, steps):
    """The tiny model of the method matrix: four layers, so that a method has some to skip and some to read."""
    values["model"]["lm"]["num_hidden_layers"] = 4
    values["optim"] = {"steps": steps, "batch_size": 2, "lr": 3e-3, "warmup": 0.1}
    return values | {"method": method, "watch": {"probe": 0}, "log_every": 1}


@pytest.mark.parametrize(
    "name", [name if name == "mod" else pytest.param(name, marks=pytest.mark.slow) for name in SPECS]
)
def test_losses_are_those_on_record(values, name):
    """Of every method. Regression values, made by ``python -m tests.train.test_regression``: to be made anew only where a
    change of the numbers is meant.
    """
    train(four_layers(values, SPECS[name], 20))
    assert losses(values["out"]) == pytest.approx(json.loads(RECORDED.read_text())[name], rel=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("row", MATRIX, ids=str)
def test_two_hundred_steps_lower_the_loss(values, row):
    train(four_layers(values, row.spec, 200))
    seen = losses(values["out"])
    first, last = sum(seen[:10]) / 10, sum(seen[-10:]) / 10
    assert last < 0.6 * first, (first, last)


def record():
    from vtskip.data.synthetic import make

    with TemporaryDirectory() as folder:
        root, found = make("smoke", Path(folder) / "smoke", progress=False), {}
        for name, spec in SPECS.items():
            out = Path(folder) / name
            train(four_layers(tiny_values(root, out), spec, 20))
            found[name] = losses(out)
    RECORDED.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    record()
