"""The wheel holds every file of the five folders, and works from a folder of its own."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PLACES = {
    "vtskip": "vtskip",
    "data": "vtskip/data",
    "train": "vtskip/train",
    "eval": "vtskip/eval",
    "configs": "vtskip/configs",
}
SHIPPED = {".py", ".yaml", ".json", ".typed"}


def shipped_files() -> set[str]:
    """Where every file of the checkout has to lie in the wheel. Records of measurements stay in the checkout."""
    found = set()
    for folder, place in PLACES.items():
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in SHIPPED and not {"__pycache__", "records"} & set(path.parts):
                found.add(f"{place}/{path.relative_to(ROOT / folder).as_posix()}")
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy, so that no earlier build's leftovers get in and none are left behind."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PLACES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "-w", str(out), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("vtskip-*.whl"))


@pytest.fixture(scope="module")
def target(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("target")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def outside(code: str, target: Path) -> subprocess.CompletedProcess:
    """Run ``code`` where the checkout is on no path: isolated, and in a folder of its own."""
    code = f"import sys; sys.path.insert(0, {str(target)!r})\n{code}"
    return subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd=target)


def test_wheel_holds_exactly_the_files_of_the_five_folders(wheel):
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert names == shipped_files()


def test_wheel_names_its_license_and_program(wheel):
    archive = zipfile.ZipFile(wheel)
    info = next(n for n in archive.namelist() if n.endswith("/METADATA")).rpartition("/")[0]
    assert "License-Expression: Apache-2.0" in archive.read(f"{info}/METADATA").decode()
    assert "Apache License" in archive.read(f"{info}/licenses/LICENSE").decode()
    assert "vtskip = vtskip.cli.main:main" in archive.read(f"{info}/entry_points.txt").decode()


def test_every_module_of_the_wheel_is_found_inside_it(target):
    modules = sorted(
        n.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for n in shipped_files() if n.endswith(".py")
    )
    done = outside(
        "from importlib.util import find_spec\nimport vtskip\n"
        "assert len(vtskip.__path__) == 1, vtskip.__path__\n"
        f"for name in {modules!r}:\n"
        f"    origin = find_spec(name).origin\n    assert origin.startswith({str(target)!r}), origin\n",
        target,
    )
    assert done.returncode == 0, done.stderr


def test_the_wheel_imports_and_reads_its_configurations(target):
    done = outside(
        "import vtskip.data, vtskip.train, vtskip.eval, vtskip.configs\n"
        "from importlib.resources import files\nfrom vtskip.config import read_yaml\n"
        "print(read_yaml(str(files('vtskip.configs') / 'train' / 'demo_mod.yaml'))['name'])\n"
        "from vtskip.cli.main import main\nsys.exit(main(['methods', '--json']))",
        target,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("demo_mod\n[")


def test_the_installed_package_works_from_anywhere(tmp_path):
    try:
        distribution("vtskip")
    except PackageNotFoundError:
        pytest.skip("vtskip is not installed in this environment")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    code = "import vtskip.data, vtskip.train, vtskip.eval, vtskip.configs"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    program = Path(sys.executable).with_name("vtskip")
    done = subprocess.run([program, "--version"], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stdout[:7]) == (0, "vtskip "), done.stderr
