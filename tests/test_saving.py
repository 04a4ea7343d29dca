"""A method beside its checkpoint: round trip, shared parameters, newer files, base models, the Hub, and what is refused."""

import json
from types import SimpleNamespace
from typing import Literal

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

import vtskip
from tests.tiny import FAMILIES
from vtskip._files import write_atomic
from vtskip.errors import CheckpointError, VtskipError
from vtskip.methods import METHODS, Method
from vtskip.methods.mod import Mod, ModPlanner
from vtskip.model_card import CARD_NAME, PICTURE_NAME
from vtskip.routers import Router
from vtskip.runtime.attach import attached
from vtskip.saving import CONFIG_NAME, WEIGHTS_NAME

MOD = {"name": "mod", "keep": 0.3, "schedule": {"kind": "constant", "first": 1}}


def stock(name: str = "llava-llama") -> torch.nn.Module:
    return FAMILIES[name].model(torch.float32)


def trained(name: str = "llava-llama", spec=MOD) -> torch.nn.Module:
    model = stock(name)
    vtskip.attach(model, spec)
    for key, parameter in model.named_parameters():
        if "vtskip" in key:
            torch.nn.init.normal_(parameter)
    return model


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**FAMILIES["llava-llama"].batch(["long", "short"], dtype=torch.float32)).logits


def rewrite(folder, **values) -> None:
    """Change the saved configuration."""
    path = folder / CONFIG_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_round_trip(tmp_path):
    model, other = trained(), stock()
    vtskip.save_pretrained(model, tmp_path)
    handle = vtskip.load_pretrained(other, tmp_path)
    assert handle.method == attached(model).method
    assert torch.equal(logits(other), logits(model))
    assert {p.name for p in tmp_path.iterdir()} - {PICTURE_NAME} == {CARD_NAME, CONFIG_NAME, WEIGHTS_NAME}


def test_keys_are_the_same_for_every_family(tmp_path):
    for name in ("llava-llama", "qwen2_5_vl"):
        vtskip.save_pretrained(trained(name), tmp_path / name, card=False)
        keys = sorted(load_file(tmp_path / name / WEIGHTS_NAME))
        assert keys == [f"layers.{i}.router.{part}" for i in (1, 2, 3) for part in ("bias", "weight")]


class Shared(Method):
    """One router for all layers."""

    name: Literal["shared"] = "shared"

    def planners(self, shape):
        router = Router(shape.hidden)
        return [None, *(ModPlanner(Mod(), 0.3, router) for _ in range(shape.layers - 1))]


def test_a_shared_router_is_saved_once_and_loaded_into_every_layer(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "shared", Shared)
    model, other = trained(spec=Shared()), stock()
    vtskip.save_pretrained(model, tmp_path)
    assert sorted(load_file(tmp_path / WEIGHTS_NAME)) == ["layers.1.router.bias", "layers.1.router.weight"]
    vtskip.load_pretrained(other, tmp_path)
    assert torch.equal(logits(other), logits(model))
    routers = {id(layer.vtskip.router) for layer in other.get_decoder().layers[1:]}
    assert len(routers) == 1


def test_nothing_attached_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no method attached"):
        vtskip.save_pretrained(stock(), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_parameters_that_are_elsewhere_are_refused(tmp_path):
    model = trained()
    model.get_decoder().layers[2].vtskip.router.weight.data = torch.empty(0)
    with pytest.raises(CheckpointError, match=r"layers\.2\.router\.weight has no values here"):
        vtskip.save_pretrained(model, tmp_path)
    assert not list(tmp_path.iterdir())


# -- the base model ------------------------------------------------------------------------------------------------------


def test_another_base_model_is_refused_and_left_alone(tmp_path):
    vtskip.save_pretrained(trained(), tmp_path)
    other = stock("llava-qwen2")
    with pytest.raises(CheckpointError, match=r"another base model: text_model_type 'llama' \(this model: 'qwen2'\)"):
        vtskip.load_pretrained(other, tmp_path)
    assert attached(other) is None
    rewrite(tmp_path, base=json.loads((tmp_path / CONFIG_NAME).read_text())["base"] | {"hidden": 64, "layers": 5})
    with pytest.raises(CheckpointError, match=r"layers 5 \(this model: 4\), hidden 64 \(this model: 32\)"):
        vtskip.load_pretrained(stock(), tmp_path)


def on_disk(folder) -> torch.nn.Module:
    """A stock model that was loaded from a folder, so that it knows where it came from."""
    stock().save_pretrained(folder)
    return FAMILIES["llava-llama"].build().from_pretrained(folder)


def test_the_base_is_loaded_by_the_name_on_record(tmp_path):
    base = on_disk(tmp_path / "base")
    vtskip.attach(base, MOD)
    vtskip.save_pretrained(base, tmp_path / "method")
    handle = vtskip.load_pretrained(tmp_path / "method", dtype=torch.bfloat16)
    assert type(handle.model) is type(base) and not handle.model.training
    assert handle.model.dtype == torch.bfloat16
    handle = vtskip.load_pretrained(str(tmp_path / "method"))
    assert torch.equal(logits(handle.model), logits(base))


def test_the_base_beside_the_method_is_preferred(tmp_path):
    base = on_disk(tmp_path / "elsewhere")
    vtskip.attach(base, "random")
    base.save_pretrained(tmp_path / "whole")
    vtskip.save_pretrained(base, tmp_path / "whole")
    (tmp_path / "whole").rename(tmp_path / "moved")  # nothing is left under any name on record
    (tmp_path / "elsewhere" / "config.json").unlink()
    assert torch.equal(logits(vtskip.load_pretrained(tmp_path / "moved").model), logits(base))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name_or_path": None}, "names no base model to load"),
        ({"name_or_path": "/nowhere/at/all"}, "base model '/nowhere/at/all' cannot be read"),
        ({"model_class": "AutoTokenizer"}, "base model class 'AutoTokenizer' is not in transformers"),
        ({"model_class": "NoSuchModel"}, "base model class 'NoSuchModel' is not in transformers"),
    ],
)
def test_a_base_that_cannot_be_loaded_is_named(tmp_path, change, message):
    vtskip.save_pretrained(trained(), tmp_path)
    base = json.loads((tmp_path / CONFIG_NAME).read_text())["base"]
    rewrite(tmp_path, base=base | {"name_or_path": "somewhere"} | change)
    with pytest.raises(CheckpointError, match=message):
        vtskip.load_pretrained(tmp_path)


def test_a_revision_is_recorded_and_asked_for(tmp_path, monkeypatch):
    model, asked = trained(), {}
    model.config._name_or_path, model.config._commit_hash = "org/base", "c0ffee"
    vtskip.save_pretrained(model, tmp_path)

    def from_pretrained(source, **kwargs):
        asked.update(source=source, **kwargs)
        return stock()

    monkeypatch.setattr(type(model), "from_pretrained", from_pretrained)
    vtskip.load_pretrained(tmp_path)
    assert asked == {"source": "org/base", "revision": "c0ffee"}


def test_a_model_or_a_folder_but_not_both_ways(tmp_path):
    with pytest.raises(TypeError, match="a model and a folder, or a folder alone"):
        vtskip.load_pretrained(tmp_path, tmp_path)
    with pytest.raises(TypeError, match="dtype"):
        vtskip.load_pretrained(stock(), tmp_path, dtype=torch.float32)


# -- versions and damage -------------------------------------------------------------------------------------------------

UNKNOWN = MOD | {"temperature": 2.0, "schedule": MOD["schedule"] | {"ramp": [1, 2]}}


def test_unknown_keys_of_a_newer_version_are_left_out_with_a_warning(tmp_path):
    model, other = trained(), stock()
    vtskip.save_pretrained(model, tmp_path)
    rewrite(tmp_path, method=UNKNOWN, vtskip_version="99.1", license="a new entry")
    with pytest.warns(UserWarning, match=r"written by vtskip 99\.1, .*schedule\.ramp.*temperature|temperature.*ramp"):
        handle = vtskip.load_pretrained(other, tmp_path)
    assert handle.method == attached(model).method
    assert torch.equal(logits(other), logits(model))


@pytest.mark.parametrize("version", [vtskip.__version__, "0.0.1", "a week ago", None])
def test_unknown_keys_of_this_or_an_older_version_are_errors(tmp_path, version):
    vtskip.save_pretrained(trained(), tmp_path)
    rewrite(tmp_path, method=UNKNOWN, vtskip_version=version)
    model = stock()
    with pytest.raises(VtskipError, match=r"temperature"):
        vtskip.load_pretrained(model, tmp_path)
    assert attached(model) is None


def test_a_bad_value_of_a_newer_version_is_still_an_error(tmp_path):
    vtskip.save_pretrained(trained(), tmp_path)
    rewrite(tmp_path, method=UNKNOWN | {"keep": 3}, vtskip_version="99.1")
    with pytest.warns(UserWarning), pytest.raises(VtskipError, match="keep: got 3"):
        vtskip.load_pretrained(stock(), tmp_path)


def test_a_folder_that_the_model_alone_was_saved_to_says_what_is_missing(tmp_path):
    model = trained()
    model.save_pretrained(tmp_path)  # holds the routers, but not what they are for
    with pytest.raises(CheckpointError, match=r"vtskip\.save_pretrained\(model, folder\) writes it, beside"):
        vtskip.load_pretrained(stock(), tmp_path)
    vtskip.save_pretrained(model, tmp_path)
    vtskip.load_pretrained(stock(), tmp_path)


@pytest.mark.parametrize("damage", ["config", "json", "weights", "missing", "shape", "method"])
def test_damage_is_named(tmp_path, damage):
    vtskip.save_pretrained(trained(), tmp_path)
    config, weights = tmp_path / CONFIG_NAME, tmp_path / WEIGHTS_NAME
    if damage == "config":
        config.unlink()
    elif damage == "json":
        config.write_text("{")
    elif damage == "weights":
        weights.write_bytes(weights.read_bytes()[:-50])
    elif damage == "method":
        rewrite(tmp_path, method=MOD | {"name": "mood"})
    else:
        state = load_file(weights)
        if damage == "missing":
            state.pop("layers.2.router.bias")
        else:
            state["layers.2.router.weight"] = torch.zeros(1, 7)
        save_file(state, weights)
    model = stock()
    with pytest.raises(VtskipError, match=str(tmp_path) if damage != "method" else "did you mean 'mod'"):
        vtskip.load_pretrained(model, tmp_path)
    assert attached(model) is None


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


# -- the Hub -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that is a folder: repositories are its subfolders."""

    class Api:
        def __init__(self, token=None):
            self.token = token

        def create_repo(self, repo_id, private, exist_ok):
            assert exist_ok
            if self.token == "expired":
                raise OSError("401 Client\nError")
            return SimpleNamespace(repo_id=repo_id if "/" in repo_id else f"me/{repo_id}")

        def upload_folder(self, repo_id, folder_path, revision, commit_message):
            import shutil

            shutil.copytree(folder_path, tmp_path / "hub" / repo_id)
            return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    def download(repo_id, revision, allow_patterns):
        if not (tmp_path / "hub" / repo_id).is_dir():
            raise FileNotFoundError(f"404 {repo_id}")
        return str(tmp_path / "hub" / repo_id)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return tmp_path / "hub"


def test_push_to_hub_and_load_from_it(hub):
    model, other = trained(), stock()
    assert vtskip.push_to_hub(model, "routers", token="secret") == "https://hub/me/routers/commit/1"
    assert 'load_pretrained(model, "routers")' in (hub / "me/routers" / CARD_NAME).read_text()
    assert not any(b"secret" in p.read_bytes() for p in (hub / "me/routers").iterdir())
    vtskip.load_pretrained(other, "me/routers")
    assert torch.equal(logits(other), logits(model))


def test_pushing_needs_a_login(hub, monkeypatch):
    with pytest.raises(CheckpointError, match="me/routers: not logged in to the Hugging Face Hub; run `hf auth login`"):
        vtskip.push_to_hub(trained(), "me/routers")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "stored")
    vtskip.push_to_hub(trained(), "me/routers")
    assert (hub / "me/routers" / WEIGHTS_NAME).is_file()


def test_what_the_hub_refuses_is_said(hub):
    with pytest.raises(CheckpointError, match=r"me/routers: the Hugging Face Hub refused it \(401 Client Error\)"):
        vtskip.push_to_hub(trained(), "me/routers", token="expired")
    with pytest.raises(CheckpointError, match="me/nothing: no folder here, and not read from the Hub"):
        vtskip.load_pretrained(stock(), "me/nothing")
    with pytest.raises(CheckpointError, match="not a vtskip checkpoint"):
        vtskip.load_pretrained(stock(), hub / "nothing")
