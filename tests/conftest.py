"""Shared by all tests: thread count, the checkout on the import path, and the golden data."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_GOLDEN = ROOT / "tests" / "golden" / "data"

# Before torch is imported anywhere: two OpenMP threads beside a second test process are far slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not Path("/proc/driver/nvidia").exists():  # read when Triton is first imported, by whatever imports it
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the network fails at once
# The tests judge this checkout, here and in the processes they start, whatever else is installed.
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


import vtskip  # noqa: E402, F401  first of all: lets torchvision import next to a CPU torch


@dataclass(frozen=True)
class GoldenItem:
    """One reference item: its description with every size and option, and its tensors (none for JSON-only items)."""

    name: str
    json: dict
    tensors: "dict[str, torch.Tensor]"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden", metavar="DIR", default=None, help="golden data to test against (default: tests/golden/data)"
    )


def pytest_configure(config: pytest.Config) -> None:
    folder = config.getoption("--golden")
    if folder is None:
        return
    path = Path(folder)
    if not path.is_absolute():
        path = config.invocation_params.dir / path
    if not any(path.glob("*.json")):
        raise pytest.UsageError(f"--golden {folder}: no golden items (*.json) there")
    config.option.golden = str(path)  # absolute, so that worker processes and tests that change folder see the same


def load_golden(folder: Path, name: str) -> GoldenItem:
    """Read ``name`` from ``folder``. A missing item fails in the project's own folder and skips in another one."""
    description = folder / f"{name}.json"
    if not description.is_file():
        if folder.resolve() == DEFAULT_GOLDEN.resolve():
            pytest.fail(f"golden item {name!r} is missing from {folder}", pytrace=False)
        pytest.skip(f"{folder} has no golden item {name!r}")
    item = json.loads(description.read_text(encoding="utf-8"))
    tensors = folder / f"{name}.safetensors"
    if not tensors.is_file():
        if item.get("tensors"):
            pytest.fail(
                f"golden item {name!r}: {description} describes tensors, but {tensors} is missing", pytrace=False
            )
        return GoldenItem(name, item, {})
    from safetensors.torch import load_file

    return GoldenItem(name, item, load_file(tensors))


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> "Callable[[str], GoldenItem]":
    """``golden(name)`` reads one item of the chosen folder; every call gives fresh tensors."""
    folder = Path(request.config.getoption("--golden") or DEFAULT_GOLDEN)
    return lambda name: load_golden(folder, name)
