"""In training every process calls the same modules in the same order and has the same gradients, whatever its rows.

Sharded weights are gathered, and gradients reduced, in call order: a process that leaves a module out hangs the others.
"""

import pytest
import torch

import vtskip
from tests.methods_matrix import MATRIX
from tests.tiny import FAMILIES
from vtskip.methods import LayerPlanner
from vtskip.plan import LayerPlan, RowSet

FAMILY = FAMILIES["llava-llama"]


@pytest.fixture
def model():
    return FAMILY.model().train()


def trained(model, kinds):
    """Names of the modules with weights called inside the decoder's layers in a training step, and its loss."""
    called, hooks = [], []
    for name, module in model.get_decoder().layers.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            hooks.append(module.register_forward_pre_hook(lambda m, args, name=name: called.append(name)))
    batch = FAMILY.batch(kinds)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    model.zero_grad()
    loss = model(**batch, labels=labels, use_cache=False).loss
    loss.backward()
    for hook in hooks:
        hook.remove()
    return called, loss.item()


def graded(model):
    return {name for name, p in model.get_decoder().named_parameters() if p.grad is not None}


@pytest.mark.parametrize("row", MATRIX, ids=str)
def test_batches_with_and_without_images_call_the_same_modules(model, row):
    _, dense = trained(model, ["text", "text"])
    vtskip.attach(model, row.spec)
    seen, _ = trained(model, ["long", "text"])
    with_grad = graded(model)
    unseen, loss = trained(model, ["text", "text"])
    assert unseen == seen
    assert graded(model) == with_grad == {name for name, _ in model.get_decoder().named_parameters()}
    assert loss == pytest.approx(dense, rel=1e-12) or not row.text_is_stock


@pytest.mark.parametrize("row", MATRIX, ids=str)
def test_with_checkpointing_modules_also_end_alike(model, row, monkeypatch):
    """Under ZeRO-3 weights are gathered when a module begins and released when it ends, in recomputation, too."""
    for user in ("execution", "asked"):
        monkeypatch.setattr(f"vtskip.runtime.{user}.partitioned", lambda weight: True)
    vtskip.attach(model, row.spec)
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    ended = []
    for name, module in model.get_decoder().layers.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_hook(lambda m, args, out, name=name: ended.append(name))
    (seen, _), seen_ended = trained(model, ["long", "text"]), ended[:]
    ended.clear()
    unseen, _ = trained(model, ["text", "text"])
    assert unseen == seen
    assert ended == seen_ended


class Note(torch.autograd.Function):
    """Passes a tensor on, and notes when its gradient comes by."""

    @staticmethod
    def forward(ctx, tensor, name, noted):
        ctx.name, ctx.noted = name, noted
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, gradient):
        ctx.noted.append(ctx.name)
        return gradient, None, None


def noting(value, name, noted):
    """``value`` with every tensor in it that has a gradient noted in the backward pass."""
    if isinstance(value, torch.Tensor):
        return Note.apply(value, name, noted) if value.requires_grad else value
    return type(value)(noting(v, name, noted) for v in value) if isinstance(value, (tuple, list)) else value


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("row", MATRIX, ids=str)
def test_every_tensor_that_a_module_gives_is_asked_for_its_gradient(model, row, checkpointing, monkeypatch):
    """ZeRO-3 gathers a module's weights in the backward pass once for each such tensor, modules without weights included."""
    for user in ("execution", "asked"):
        monkeypatch.setattr(f"vtskip.runtime.{user}.partitioned", lambda weight: True)
    vtskip.attach(model, row.spec)
    if checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    noted = []
    for name, module in model.get_decoder().layers.named_modules():
        module.register_forward_pre_hook(lambda m, args: noted.append("called"))
        module.register_forward_hook(lambda m, args, out, name=name: noting(out, name, noted))
    trained(model, ["long", "text"])
    seen = noted[:]
    noted.clear()
    trained(model, ["text", "text"])
    assert noted == seen


class Nothing(LayerPlanner):
    """Leaves out every row of a batch with images, from attention or FFN or both."""

    def __init__(self, attend, ffn):
        super().__init__()
        self.attend, self.ffn = attend, ffn

    def forward(self, rows, hidden):
        everything = rows.everything
        if not rows.has_vision:
            return LayerPlan(everything, everything, everything, everything)
        none = RowSet(torch.zeros_like(rows.valid), [0] * len(rows.sizes))
        attend, ffn = (everything if kept else none for kept in (self.attend, self.ffn))
        return LayerPlan.of(none) if not (self.attend or self.ffn) else LayerPlan(attend, attend, ffn, attend)


class Method:
    name = "nothing"

    def __init__(self, **kept):
        self.kept = kept

    def planners(self, shape):
        return [Nothing(**self.kept) if i in (1, 2) else None for i in range(shape.layers)]


@pytest.mark.parametrize("attend, ffn", [(False, False), (True, False), (False, True)])
def test_a_layer_that_keeps_nothing_calls_its_modules(model, attend, ffn):
    dense, _ = trained(model, ["long", "short"])
    handle = vtskip.attach(model, Method(attend=attend, ffn=ffn))
    called, loss = trained(model, ["long", "short"])
    assert [name for name in called if "vtskip" not in name] == dense
    assert graded(model) == {name for name, _ in model.get_decoder().named_parameters()}
    skipped = [layer.mlp.down_proj.weight.grad for layer in model.get_decoder().layers[1:3]]
    assert all((g == 0).all() for g in skipped) is not ffn
    # The filler row changes nothing: the same loss as without gradients, where nothing is called.
    batch = FAMILY.batch(["long", "short"])
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.no_grad():
        assert model(**batch, labels=labels, use_cache=False).loss.item() == pytest.approx(loss, rel=1e-12)
    handle.detach()
