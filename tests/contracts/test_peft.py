"""PEFT adapters and attached methods, in either order: same numbers, same keys, same files."""

from typing import Literal

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file

import vtskip
from tests.tiny import FAMILIES
from vtskip.errors import ModelError
from vtskip.methods import Method
from vtskip.methods.mod import Mod, ModPlanner
from vtskip.routers import Router
from vtskip.runtime.attach import attached
from vtskip.saving import WEIGHTS_NAME, method_state

TINY = FAMILIES["llava-llama"]
TARGETS = r".*language_model.*\.(q_proj|v_proj|down_proj)"
MOD = {"name": "mod", "keep": 0.3}
SKIPS = [MOD, {"name": "pmod"}, {"name": "shortv", "layers": [0, 1, 3]}, {"name": "skip_ffn", "keep": 0.3}]
NAMES = [spec["name"] for spec in SKIPS]


def stock() -> torch.nn.Module:
    return TINY.model(torch.float32)


def adapted(model: torch.nn.Module, **options) -> PeftModel:
    """LoRA that does something from the start, the same on every model."""
    torch.manual_seed(7)
    return get_peft_model(model, LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False, **options)).eval()


def batch() -> dict[str, torch.Tensor]:
    return TINY.batch(["long", "short", "text"], dtype=torch.float32)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch()).logits


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model.train()(**batch()).logits.square().mean().backward()
    model.eval()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None and "lora" in name}


@pytest.fixture(params=SKIPS, ids=NAMES)
def pair(request):
    """(adapter before the method, adapter after the method)."""
    before, after = adapted(stock()), stock()
    vtskip.attach(before, request.param)
    vtskip.attach(after, request.param)
    return before, adapted(after)


def test_lora_before_and_after_attach_are_the_same(pair):
    before, after = pair
    assert torch.equal(logits(before), logits(after))
    assert (logits(before) - logits(adapted(stock()))).abs().max() > 1e-3
    ours, theirs = gradients(before), gradients(after)
    assert ours.keys() == theirs.keys() and len(ours) > 0
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert get_peft_model_state_dict(before).keys() == get_peft_model_state_dict(adapted(stock())).keys()


@pytest.mark.parametrize("first", [True, False])
def test_with_nothing_to_skip_it_is_plain_peft(first):
    plain, model, nothing = adapted(stock()), stock(), {"name": "shortv", "layers": []}
    if first:
        vtskip.attach(model, nothing, lossless=False)
        model = adapted(model)
    else:
        model = adapted(model)
        vtskip.attach(model, nothing, lossless=False)
    assert torch.equal(logits(model), logits(plain))
    ours, theirs = gradients(model), gradients(plain)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_adapter_is_saved_and_reloaded_with_or_without_a_method(pair, tmp_path):
    model = pair[0]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.mul_(1.5)
    model.save_pretrained(tmp_path)
    assert not any("vtskip" in key for key in load_file(tmp_path / "adapter_model.safetensors"))
    again = PeftModel.from_pretrained(stock(), tmp_path).eval()
    vtskip.attach(again, attached(model.get_base_model()).method)
    assert torch.equal(logits(again), logits(model))
    attached(again.get_base_model()).detach()
    attached(model.get_base_model()).detach()
    assert torch.equal(logits(again), logits(model))


def test_merge_and_unload_leaves_the_method_on(pair):
    model = pair[1]
    expected = logits(model)
    merged = model.merge_and_unload()
    assert (logits(merged) - expected).abs().max() < 1e-4
    attached(merged).detach()
    assert (logits(merged) - logits(adapted(stock()))).abs().max() < 1e-4
    assert list(merged.state_dict()) == list(stock().state_dict())


def test_detach_under_an_adapter_restores_plain_peft(pair):
    for model in pair:
        attached(model.get_base_model()).detach()
        assert torch.equal(logits(model), logits(adapted(stock())))


# -- routers beside the adapter ------------------------------------------------------------------------------------------


def stepped(model: torch.nn.Module) -> torch.nn.Module:
    """One large optimiser step on everything that trains."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=3.0)
    model.train()(**batch()).logits.square().mean().backward()
    optimizer.step()
    return model.eval()


def test_routers_train_with_modules_to_save_and_lie_in_the_adapter_file(tmp_path):
    base = stock()
    vtskip.attach(base, MOD)
    untrained = {k: t.clone() for k, t in method_state(base).items()}
    model = stepped(adapted(base, modules_to_save=["vtskip.router"]))
    assert all(not torch.equal(t, untrained[k]) for k, t in method_state(model).items())
    model.save_pretrained(tmp_path)
    again = stock()
    vtskip.attach(again, MOD)
    assert torch.equal(logits(PeftModel.from_pretrained(again, tmp_path).eval()), logits(model))


def test_routers_in_our_files_beside_those_of_peft(tmp_path):
    base = stock()
    vtskip.attach(base, MOD)
    model = stepped(adapted(base, modules_to_save=["vtskip.router"]))
    model.save_pretrained(tmp_path / "theirs")
    vtskip.save_pretrained(model, tmp_path / "ours")
    keys = sorted(load_file(tmp_path / "ours" / WEIGHTS_NAME))
    assert keys == [f"layers.{i}.router.{part}" for i in (1, 3) for part in ("bias", "weight")]
    plain, expected = stock(), method_state(model)
    vtskip.load_pretrained(plain, tmp_path / "ours")
    assert all(torch.equal(t, expected[k]) for k, t in method_state(plain).items())
    with model.disable_adapter():  # PEFT then runs the routers as they were: those of another file
        assert not torch.equal(logits(plain), logits(model))


def test_both_kinds_of_file_in_one_folder(tmp_path):
    model = adapted(stock())
    vtskip.attach(model, MOD)  # after PEFT has frozen the base: the routers train
    assert {n for n, p in model.named_parameters() if p.requires_grad and "lora" not in n} == {
        f"base_model.model.model.language_model.layers.{i}.vtskip.router.{part}"
        for i in (1, 3)
        for part in ("weight", "bias")
    }
    stepped(model)
    model.save_pretrained(tmp_path)
    vtskip.save_pretrained(model, tmp_path)
    assert "peft" in (tmp_path / "README.md").read_text().partition("---\n\n")[0]
    again = PeftModel.from_pretrained(stock(), tmp_path).eval()
    vtskip.load_pretrained(again, tmp_path)
    assert torch.equal(logits(again), logits(model))
    first = stock()
    vtskip.load_pretrained(first, tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(first, tmp_path).eval()), logits(model))


def test_the_whole_policy_in_modules_to_save_is_refused():
    """PEFT would deep-copy it together with the state of the forward, and the copy would never see a vision row."""
    base = stock()
    vtskip.attach(base, MOD)
    model = adapted(base, modules_to_save=["vtskip"])
    with pytest.raises(ModelError, match=r'modules_to_save=\["vtskip\.router"\]'):
        model(**batch())


class Shared(Method):
    """One router, a child of every layer."""

    name: Literal["shared"] = "shared"

    def planners(self, shape):
        router = Router(shape.hidden)
        return [ModPlanner(Mod(), 0.3, router) for _ in range(shape.layers)]


def test_a_shared_router_in_modules_to_save_is_refused():
    """PEFT would copy it for the first layer alone, and the others would go on with the frozen original."""
    base = stock()
    vtskip.attach(base, Shared())
    model = adapted(base, modules_to_save=["vtskip.router"])
    with pytest.raises(ModelError, match="layers that shared one router no longer do"):
        model(**batch())


@pytest.mark.parametrize("saved", [True, False])
def test_the_router_of_gamma_mod_trains_for_all_layers(tmp_path, saved):
    base, spec = stock(), {"name": "gamma_mod", "schedule": {"kind": "constant"}}
    if saved:
        vtskip.attach(base, spec)
        model = adapted(base, modules_to_save=["vtskip.router"])
    else:
        model = adapted(base)
        vtskip.attach(model, spec)
    untrained = next(iter(method_state(model).values())).clone()
    stepped(model)
    expected = method_state(model)
    assert list(expected) == ["layers.0.router.weight"] and not torch.equal(*expected.values(), untrained)
    vtskip.save_pretrained(model, tmp_path)
    model.save_pretrained(tmp_path)
    again = stock()
    vtskip.load_pretrained(again, tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(again, tmp_path).eval()), logits(model))
