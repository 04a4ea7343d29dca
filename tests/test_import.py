"""What ``import vtskip`` costs and gives, and that torchvision, open_clip, timm and transformers import after it."""

import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

import vtskip
from vtskip import _torchvision

ROOT = Path(__file__).resolve().parent.parent


def python(code: str, *flags: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, cwd=cwd)


def test_importing_vtskip_loads_neither_torch_nor_transformers():
    done = python(
        "import sys, vtskip, vtskip.errors; heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'decord', 'av'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_core_loads_no_reader_and_no_vision_library():
    done = python(
        "import sys, vtskip; vtskip.attach, vtskip.LayerPlan, vtskip.get_method;"
        "heavy = {'decord', 'av', 'open_clip', 'timm', 'deepspeed', 'datasets'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    assert done.returncode == 0, done.stderr


def test_libraries_that_need_torchvision_import_after_vtskip():
    done = python(
        "import vtskip\nimport open_clip, timm, torchvision\nfrom transformers import LlamaForCausalLM, Trainer\n"
        "print(LlamaForCausalLM.__name__, torchvision.ops.nms.__name__)"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["LlamaForCausalLM", "nms"]


def test_public_names_exist_and_are_few():
    for name in vtskip.__all__:
        assert getattr(vtskip, name) is not None
    assert len(vtskip.__all__) <= 25
    assert set(dir(vtskip)) >= set(vtskip.__all__)
    with pytest.raises(AttributeError, match="no attribute 'atach'"):
        vtskip.atach  # noqa: B018


@pytest.mark.parametrize("folder", ["data", "train", "eval", "configs"])
def test_a_bare_import_from_the_checkout_says_what_to_import(folder):
    done = python(f"import {folder}", cwd=ROOT)
    assert done.returncode == 1
    assert f"import vtskip.{folder}, not {folder}" in done.stderr


def test_a_source_checkout_gives_all_rooms():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import vtskip.data, vtskip.train, vtskip.eval, vtskip.configs;"
        "print(vtskip.data.__file__)"
    )
    done = python(code, "-I")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == ROOT / "data" / "__init__.py"


@pytest.fixture
def fragments(monkeypatch):
    """Names that would have been defined; nothing reaches torch's registry."""
    import torch

    class Library:
        defined: list[str] = []

        def __init__(self, *args):
            self.defined.clear()

        def define(self, schema):
            self.defined.append(schema.partition("(")[0])

    monkeypatch.setattr(torch.library, "Library", Library)
    monkeypatch.setattr(_torchvision, "_library", None)
    monkeypatch.setattr(torch.version, "cuda", None)
    return Library.defined


def spec_with_library(folder: Path) -> ModuleSpec:
    (folder / "_C.so").write_bytes(b"no library")
    spec = ModuleSpec("torchvision", None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    return spec


def test_schemas_are_declared_once_where_the_library_does_not_load(fragments, monkeypatch, tmp_path):
    spec = spec_with_library(tmp_path)
    _torchvision.declare_operators(spec)
    assert fragments == ["nms", "qnms"]
    fragments.clear()
    _torchvision.declare_operators(spec)
    assert fragments == []


def test_nothing_is_declared_where_the_library_loads(fragments, monkeypatch, tmp_path):
    import torch

    loaded = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    monkeypatch.setattr(torch.ops, "torchvision", type("Ops", (), {"nms": 1}), raising=False)
    _torchvision.declare_operators(spec_with_library(tmp_path))
    assert loaded == [str(tmp_path / "_C.so")]
    assert fragments == []


def test_nothing_is_declared_beside_a_torch_with_a_gpu(fragments, monkeypatch, tmp_path):
    import torch

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    _torchvision.declare_operators(spec_with_library(tmp_path))
    assert fragments == []
