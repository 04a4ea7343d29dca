"""Rows stay packed between layers that run the same ones, and nobody who looks at the hidden states can tell."""

import copy

import pytest
import torch
from torch import nn
from transformers import DynamicCache

import vtskip
from tests.tiny import FAMILIES
from vtskip.errors import ModelError
from vtskip.plan import RowMap
from vtskip.runtime import carried
from vtskip.runtime.carried import Carried, whole
from vtskip.runtime.layout import Layout

UNEVEN, EVEN = ["long", "short", "text"], ["long", "long"]
FASTV = {"name": "fastv", "layer": 1, "keep": 0.5}
# What runs, on which batch, and how many of the three steps between the four layers carry packed rows.
CASES = [("dense", UNEVEN, 3), (FASTV, UNEVEN, 3), (FASTV, EVEN, 2), ({"name": "pyramid_drop"}, UNEVEN, 3)]
CASES += [
    ("dense", EVEN, 0),
    ({"name": "early_exit", "layer": 1}, UNEVEN, 3),
    ({"name": "random", "keep": 0.3}, UNEVEN, 3),
]
CASES = pytest.mark.parametrize(("spec", "kinds", "steps"), CASES, ids=lambda v: v["name"] if type(v) is dict else None)


@pytest.fixture(scope="module", params=["llava-llama", "qwen3_vl", "gemma3"])
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def model(family):
    return family.model()


@pytest.fixture
def moved(monkeypatch):
    """How often rows were left packed, and how often they were scattered because somebody read them."""
    counts = {"carried": 0, "read": 0}
    make, put = Carried.__init__, Layout.put

    def init(self, *args):
        counts["carried"] += 1
        make(self, *args)

    def scatter(self, base, rows):
        counts["read"] += base.dim() == 3
        return put(self, base, rows)

    monkeypatch.setattr(Carried, "__init__", init)
    monkeypatch.setattr(Layout, "put", scatter)
    return counts


@pytest.fixture
def at_once(monkeypatch):
    """Switches it off: every layer scatters its rows itself."""

    def switch(off=True):
        monkeypatch.setattr(carried, "quiet", (lambda layer: False) if off else quiet)

    quiet = carried.quiet  # of the layer behind
    return switch


def outputs(model, batch, spec, **options):
    real = batch["attention_mask"].bool()
    cache, parameters = DynamicCache(config=model.config), list(model.get_decoder().parameters())
    with vtskip.attach(model, spec):
        out = model(**batch, past_key_values=cache, **options)
        weight = torch.randn(out.logits.shape, generator=torch.Generator().manual_seed(0)).to(out.logits.dtype)
        loss = (out.logits * weight)[real].sum()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [out.logits[real], *(layer.keys for layer in cache.layers), *gradients], out


def same(ours, theirs, tolerance):
    for mine, its in zip(ours, theirs, strict=True):
        assert (mine is None) == (its is None)
        assert mine is None or (mine - its).abs().max() <= tolerance * max(1.0, float(its.detach().abs().max()))


@CASES
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_cache_and_gradients_are_those_of_rows_scattered_at_once(
    model, family, moved, at_once, spec, kinds, steps, side
):
    batch = family.batch(kinds, side)
    ours, out = outputs(model, batch, spec)
    assert type(out.logits) is torch.Tensor
    if family.name == "llava-llama" and spec != {"name": "random", "keep": 0.3}:
        assert moved["carried"] == steps
    at_once()
    moved.update(carried=0)
    theirs, _ = outputs(model, batch, spec)
    assert moved["carried"] == 0
    same(ours, theirs, 2**-20)  # sums of gradients go another way, through norms in float32


@pytest.mark.parametrize(("spec", "kinds", "steps"), [("dense", UNEVEN, 3), (FASTV, EVEN, 2)])
def test_rows_are_scattered_once(moved, spec, kinds, steps):
    """Of a run of layers on the same rows, the last one alone."""
    family = FAMILIES["llava-llama"]
    model, batch = family.model(), family.batch(kinds)
    with torch.no_grad(), vtskip.attach(model, spec):
        moved.update(read=0)  # attaching tries each layer
        model(**batch)
    assert moved == {"carried": steps, "read": 1}


@pytest.mark.parametrize("spec", ["dense", FASTV], ids=["dense", "fastv"])
def test_hidden_states_that_are_asked_for_have_every_row_in_its_place(family, at_once, spec):
    model, batch = family.model(), family.batch(UNEVEN)  # transformers leaves its hooks on it
    real = batch["attention_mask"].bool()
    shown = []
    for off in (False, True):
        at_once(off)
        with torch.no_grad(), vtskip.attach(model, spec):
            shown.append(model(**batch, output_hidden_states=True).hidden_states)
            assert all(type(states) is torch.Tensor for states in shown[-1])
    for ours, theirs in zip(*shown, strict=True):
        assert torch.equal(ours[real], theirs[real])


@pytest.mark.parametrize("hook", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_on_a_layer_sees_and_changes_all_rows(at_once, hook):
    family = FAMILIES["llava-llama"]
    model, batch = family.model(), family.batch(EVEN)
    results = []
    for off in (False, True):
        at_once(off)
        seen = []

        def double(module, args, output=None, seen=seen):
            x = args[0] if output is None else output
            seen.append(x)
            return x * 2 if output is not None else (x * 2, *args[1:])

        handle = getattr(model.get_decoder().layers[2], hook)(double)
        with torch.no_grad(), vtskip.attach(model, FASTV):
            logits = model(**batch).logits
        handle.remove()
        assert type(seen[0]) is torch.Tensor
        results.append((logits, seen[0]))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def test_backward_hooks_get_the_gradient_of_every_row(at_once):
    family = FAMILIES["llava-llama"]
    model, batch, results = family.model(), family.batch(EVEN), []
    for off in (False, True):
        at_once(off)
        seen = []
        handle = (
            model.get_decoder()
            .layers[2]
            .register_full_backward_hook(lambda m, into, out, seen=seen: seen.append(out[0]))
        )
        with vtskip.attach(model, FASTV):
            model(**batch).logits.square().mean().backward()
        handle.remove()
        model.zero_grad()
        results.append(seen[0])
    assert torch.equal(*results)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_hold_the_whole_stream(moved, reentrant):
    family = FAMILIES["llava-llama"]
    model, batch = family.model().train(), family.batch(UNEVEN)
    model.get_input_embeddings().requires_grad_()
    gradients = []
    for some in (0, 2, 4):  # of the layers are checkpointed
        if some:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": reentrant})
            for i, layer in enumerate(model.get_decoder().layers):
                layer.gradient_checkpointing = i % 4 // 2 == 1 or some == 4
        moved.update(carried=0)
        with vtskip.attach(model, "dense"):
            logits = model(**batch, use_cache=False).logits[batch["attention_mask"].bool()]
            logits.square().mean().backward()
        gradients.append([p.grad for p in model.get_decoder().parameters()])
        model.zero_grad()
        assert moved["carried"] == {0: 3, 2: 2, 4: 0}[some]
    for other in gradients[1:]:
        same(gradients[0], other, 1e-12)


@pytest.mark.parametrize("spec", ["dense", FASTV], ids=["dense", "fastv"])
def test_generate_and_copies(at_once, spec):
    family = FAMILIES["llava-llama"]
    model, batch = family.model(), family.batch(UNEVEN)
    batch.pop("position_ids")
    settings = dict(max_new_tokens=4, min_new_tokens=4, do_sample=False, num_beams=2)
    words = []
    for off in (False, True):
        at_once(off)
        with vtskip.attach(model, spec):
            words.append(model.generate(**batch, **settings))
            words.append(copy.deepcopy(model).generate(**batch, **settings))
    assert all(torch.equal(words[0], other) for other in words[1:])


# ---------------------------------------------------------------- the tensor itself


@pytest.fixture
def stream():
    generator = torch.Generator().manual_seed(0)
    valid = torch.tensor([[1, 1, 0, 1, 1], [0, 0, 1, 1, 1]], dtype=torch.bool).numpy()
    rows = RowMap.build(valid & False, valid).everything
    rest, packed = (torch.randn(*size, 3, generator=generator, requires_grad=True) for size in ((2, 5), (1, 7)))
    expected = rest.clone()
    expected[rows.mask] = packed[0]
    return Carried(Layout(rows, True), packed, rest), expected


def test_any_operation_reads_the_whole_tensor(stream):
    x, expected = stream
    assert x.shape == (2, 5, 3) and x.size(1) == 5 and x.dim() == 3 and x.dtype == torch.float32 and x.full is None
    assert not x.is_meta and x.ndim == 3 and x.numel() == 30 and x.is_floating_point() and x.full is None
    assert x.device.type == "cpu" and isinstance(x, torch.Tensor) and x.full is None
    for read in (
        lambda t: t + 1,
        lambda t: 1 - t,
        lambda t: torch.cat([t, t]),
        lambda t: t[0, 1:],
        lambda t: t.detach().numpy() + 0,
        lambda t: t.to(torch.float64),
        lambda t: nn.functional.linear(t, torch.ones(2, 3)),
        lambda t: torch.stack(list(t)),
        lambda t: copy.deepcopy(t.detach()),
        lambda t: torch.tensor(t.tolist()),
    ):
        found, right = read(Carried(x.place, x.packed, x.rest)), read(expected)
        assert type(found) is type(right) and (found == right).all()
    assert x.requires_grad and repr(x.detach()) == repr(expected.detach())


def test_reading_without_gradient_keeps_it_for_who_reads_next(stream):
    x, expected = stream
    with torch.no_grad():
        assert not (x * 2).requires_grad
    ours = torch.autograd.grad((x**2).sum(), (x.packed, x.rest))
    theirs = torch.autograd.grad((expected**2).sum(), (x.packed, x.rest)) if expected.requires_grad else None
    assert theirs is not None and all(torch.equal(a, b) for a, b in zip(ours, theirs))


def test_what_is_written_into_it_counts(stream):
    x, expected = stream
    assert x.lies_in(x.place) and not x.lies_in(Layout(x.place.rows, False))
    with torch.no_grad():
        x[0, 1] = 7.0
        x += 1
        expected[0, 1] = 7.0
        expected += 1
    assert torch.equal(whole(x), expected)


def test_who_reads_past_python_is_told(stream):
    with torch._C.DisableTorchFunctionSubclass(), pytest.raises(ModelError, match="lossless=False"):
        torch.add(stream[0], 1)
