"""Models spread out or offloaded by accelerate: its hooks stay around our forward, whichever came first."""

import copy
from contextlib import nullcontext

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module, remove_hook_from_submodules

import vtskip
from tests.methods_matrix import MATRIX
from tests.tiny import FAMILIES
from vtskip.errors import ModelError

FAMILY = FAMILIES["llava-llama"]
BLOCK, BRANCH, QUERY = (
    {"name": "mod", "keep": 0.3},
    {"name": "skip_ffn", "keep": 0.3},
    {"name": "shortv", "layers": [1, 2]},
)
SEAMS = pytest.mark.parametrize("method", [BLOCK, BRANCH, QUERY], ids=["block", "branch", "query"])
ATTACH_FIRST = pytest.mark.parametrize("attach_first", [True, False], ids=["attach-first", "place-first"])


@pytest.fixture
def model():
    return FAMILY.model(torch.float32)


def layers_of(model):
    return model.get_decoder().layers


def logits(model):
    with torch.no_grad():
        return model(**FAMILY.batch(["long", "short"], dtype=torch.float32)).logits


def generated(model):
    return model.generate(**FAMILY.batch(["long", "short"], dtype=torch.float32), max_new_tokens=4, do_sample=False)


def spread(model, folder):
    """Hooks everywhere; the decoder's layers 1 and 2 on disk, brought to the CPU layer by layer."""
    names = dict.fromkeys((n for n, _ in model.get_decoder().named_children() if n != "layers"), "cpu")
    names |= {f"layers.{i}": "disk" if i in (1, 2) else "cpu" for i in range(len(layers_of(model)))}
    place = {f"model.language_model.{name}": device for name, device in names.items()}
    place |= dict.fromkeys(("model.vision_tower", "model.multi_modal_projector", "lm_head"), "cpu")
    return dispatch_model(model, place, main_device="cpu", offload_dir=folder, force_hooks=True)


def hooks_everywhere(model, folder):
    return dispatch_model(model, {"": "cpu"}, force_hooks=True)


def weights_away(model, folder):
    cpu_offload(model, "cpu")
    return model


def whole_layers_away(model, folder):
    cpu_offload(model, "cpu", preload_module_classes=["LlamaDecoderLayer"])
    return model


@SEAMS
@ATTACH_FIRST
@pytest.mark.parametrize("place", [hooks_everywhere, spread, weights_away, whole_layers_away])
def test_a_placed_model_computes_the_same(model, tmp_path, method, attach_first, place):
    stock = logits(model)
    with vtskip.attach(copy.deepcopy(model), method) as handle:
        expected, ids = logits(handle.model), generated(handle.model)
    if not attach_first:
        model = place(model, tmp_path)
        if place is whole_layers_away and method is BLOCK:
            with pytest.raises(ModelError, match="attach the method first, then dispatch"):
                vtskip.attach(model, method)
            assert torch.equal(logits(model), stock)
            return
    handle = vtskip.attach(model, method)
    if attach_first:
        model = place(model, tmp_path)
    for _ in range(2):
        assert torch.equal(logits(model), expected)
        away = [any(p.is_meta for p in layer.parameters()) for layer in layers_of(model)]
        assert away == {hooks_everywhere: [False] * 4, spread: [False, True, True, False]}.get(place, [True] * 4)
    assert torch.equal(generated(model), ids)
    remove_hook_from_submodules(model)
    assert torch.equal(logits(model), expected)
    handle.detach()
    assert torch.equal(logits(model), stock)
    assert not any(hasattr(layer, "vtskip") for layer in layers_of(model))


@SEAMS
@ATTACH_FIRST
def test_detached_inside_its_hooks(model, tmp_path, method, attach_first):
    stock = logits(model)
    for step in ("attach", "place") if attach_first else ("place", "attach"):
        if step == "attach":
            handle = vtskip.attach(model, method)
        else:
            model = spread(model, tmp_path)
    handle.detach()
    assert torch.equal(logits(model), stock)
    remove_hook_from_submodules(model)
    assert torch.equal(logits(model), stock)


@SEAMS
def test_the_hook_of_a_layer_sees_its_input_and_its_output_once(model, method):
    class Scale(ModelHook):
        """Not a no-op, as moving to the same device would be."""

        calls = 0

        def pre_forward(self, module, hidden_states, **kwargs):
            self.calls += 1
            return (hidden_states * 2,), kwargs

        def post_forward(self, module, output):
            return output / 4

    vtskip.attach(model, method)
    plain = logits(model)
    hook = Scale()
    add_hook_to_module(layers_of(model)[1], hook)
    hooked = logits(model)
    assert hook.calls == 1 and (hooked - plain).abs().max() > 1e-3
    other = FAMILY.model(torch.float32)
    add_hook_to_module(layers_of(other)[1], Scale())
    vtskip.attach(other, method)
    assert torch.equal(logits(other), hooked)


def test_a_forward_put_over_the_hook_is_noticed(model):
    vtskip.attach(model, BLOCK)
    model = hooks_everywhere(model, None)
    add_hook_to_module(layers_of(model)[1], ModelHook())
    logits(model)
    layers_of(model)[1].forward = lambda hidden_states, **kwargs: hidden_states
    with pytest.raises(ModelError, match="decoder layer 1 was replaced"):
        logits(model)


@SEAMS
def test_loaded_by_transformers_with_layers_on_disk(model, tmp_path, method):
    with vtskip.attach(copy.deepcopy(model), method) as handle:
        expected = logits(handle.model)
    model.save_pretrained(tmp_path / "model")
    placed = spread(copy.deepcopy(model), tmp_path / "x").hf_device_map
    again = type(model).from_pretrained(
        tmp_path / "model", device_map=placed, offload_folder=tmp_path / "offload", dtype=torch.float32
    ).eval()  # fmt: skip
    assert layers_of(again)[1].mlp.up_proj.weight.is_meta
    handle = vtskip.attach(again, method)
    assert not any(
        p.is_meta for layer in layers_of(again) if hasattr(layer, "vtskip") for p in layer.vtskip.parameters()
    )
    torch.testing.assert_close(logits(again), expected)


def test_data_parallel_is_refused_with_the_reason(model):
    with pytest.raises(ModelError, match=r"nn\.DataParallel runs copies .* one process per device"):
        vtskip.attach(torch.nn.DataParallel(model), BLOCK)
    vtskip.attach(model, BLOCK)
    model.model = model.model._replicate_for_data_parallel()  # what DataParallel does for every further device
    with pytest.raises(ModelError, match=r"nn\.DataParallel"):
        logits(model)


@pytest.mark.parametrize("row", MATRIX, ids=str)
@ATTACH_FIRST
def test_rows_and_decisions_follow_their_layer_to_another_device(model, monkeypatch, row, attach_first):
    """The meta device stands for a second one: an index or mask that stayed behind does not mix with its tensors."""
    if row.name.startswith(("gamma_mod", "mindskip")):
        pytest.skip("its counts are read from the device, and there are no values on the meta device")
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # unknown to the meta device
    steps = [lambda: vtskip.attach(model, row.spec), lambda: second_half_away(model)]
    for step in steps if attach_first else reversed(steps):
        step()
    for training in (False, True):
        model.train(training)
        batch = FAMILY.batch(["long", "text"], dtype=torch.float32)
        with torch.set_grad_enabled(training):
            out = model(**batch, use_cache=not training).logits
        assert out.is_meta and out.shape[:2] == batch["input_ids"].shape


def second_half_away(model):
    decoder = model.get_decoder()
    for module in (*layers_of(model)[2:], decoder.norm, model.lm_head):
        add_hook_to_module(module.to("meta"), AlignDevicesHook("meta"))
