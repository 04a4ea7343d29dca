"""Dynamic-LLaVA: soft choices in training, the auxiliary loss, and a cache that generated rows enter or not."""

import copy

import pytest
import torch
from transformers import DynamicCache

import vtskip
from tests.methods_matrix import PREDICTOR
from tests.reference import masked, rows_of, shape_for
from tests.tiny import FAMILIES
from vtskip.methods import LayerPlanner, get_method
from vtskip.methods.dynamic_llava import by_image
from vtskip.plan import ANSWERS, LayerPlan
from vtskip.runtime import weighted
from vtskip.runtime.cache import stored_slots
from vtskip.saving import save_pretrained
from vtskip.train.warmup import Progress

TINY = FAMILIES["llava-llama"]
KINDS = ["long", "short", "text"]
SPEC = {"name": "dynamic_llava", "keep": 0.5, "layer": 1, "min_answer": 3, **PREDICTOR}


@pytest.fixture
def model():
    return TINY.model()


def planner(model):
    return model.get_decoder().layers[1].vtskip


def favour(model, margin):
    """The text predictor's answer, whatever the row: keep it, by this margin of logits."""
    last = planner(model).predictor.text[1][-1]
    last.weight.data.zero_()
    last.bias.data = torch.tensor([margin, 0.0], dtype=last.bias.dtype)


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("block", [2**26, 400])
def test_training_equals_weights_on_full_maps(model, side, block, monkeypatch):
    """Loss and gradients, the predictors' included, against an execution of all rows; with blocks of queries, too."""
    monkeypatch.setattr(weighted, "BLOCK", block)
    batch = TINY.batch(KINDS, side)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, -4:] = torch.where(batch["attention_mask"][:, -4:] == 1, 7, -100)
    model.train()
    model.loss_function = lambda logits, labels, **_: (logits.square().mean(-1) * (labels != -100)).sum()  # in float64
    found = []
    with vtskip.attach(model, SPEC, lossless=False) as handle:
        state = copy.deepcopy(planner(model).state_dict())
        loss = model(**batch, labels=labels, use_cache=False).loss
        drawn = handle.state.plans and planner(model)
        named = [*drawn.named_parameters(), *((n, p) for n, p in model.named_parameters() if ".vtskip." not in n)]
        found.append((loss.detach(), dict(zip(dict(named), grads(loss, named)))))
    again = get_method(SPEC).planners(shape_for(model))
    again[1].load_state_dict(state)
    for part in filter(None, again):
        part.double().train()
    rows = rows_of(TINY, KINDS, side)
    rows.memo[ANSWERS] = labels != -100
    with masked(model, again, rows) as losses:
        loss = model(**batch, labels=labels, use_cache=False).loss + sum(losses)
        named = [*again[1].named_parameters(), *model.named_parameters()]
        found.append((loss.detach(), dict(zip(dict(named), grads(loss, named)))))
    (ours, gradients), (expected, theirs) = found
    assert (ours - expected).abs() <= 1e-9 * expected.abs() and gradients.keys() == theirs.keys()
    weight = rows.memo["dynamic_llava", "weight"]
    judged = rows.vision | (rows.memo[ANSWERS] & rows.text.mask & (rows.memo[ANSWERS].sum(1, keepdim=True) >= 3))
    assert set(weight[judged].round().tolist()) == {0.0, 1.0} and (weight[~judged] == 1).all()
    for name, gradient in theirs.items():
        assert (gradients[name] - gradient).abs().max() <= 1e-6 * max(1.0, float(gradient.abs().max())), name
    moved = [n for n in theirs if n.startswith(("predictor.image", "predictor.text"))]
    assert moved and all(theirs[n].abs().max() > 0 for n in moved)


def grads(loss, named):
    found = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for (_, p), g in zip(named, found)]


def test_auxiliary_loss(model):
    """Per image and per long answer the squared distance of the share kept to its target; short answers are left alone."""
    batch = TINY.batch(KINDS)
    labels = torch.full_like(batch["input_ids"], -100)
    labels[0, -4:], labels[1, -2:] = 7, 7
    model.train()
    with vtskip.attach(model, {**SPEC, "keep": 0.25, "text_keep": 0.75}) as handle:
        seen = []
        planner(model).register_forward_hook(lambda m, args, plan: seen.append((args[0], plan.gain_key.detach())))
        loss = model(**batch, labels=labels, use_cache=False).loss
        (rows, weight), aux = seen[0], handle.aux_loss()
        handle.detach()
    images = weight[rows.vision].view(3, 16).mean(1)  # two of the first sample, one of the second
    answer = weight[0, -4:].mean()
    expected = 100 * (((0.25 - images) ** 2).mean() + (0.75 - answer) ** 2)
    assert aux.item() == pytest.approx(float(expected), rel=1e-9) and float(expected) > 0
    assert (weight[1, -2:] == 1).all() and (weight[rows.text.mask].sum() == rows.text.mask.sum() - 4 + 4 * answer)
    assert loss > aux.detach()


def test_noise_is_the_step_s_and_cools(model):
    """The same in every forward of a step, another in the next; at the end of a run the choice is nearly the likelier one."""
    batch = TINY.batch(["long", "long"])
    model.train()
    with vtskip.attach(model, {**SPEC, "text_keep": None}):
        drawn = []
        planner(model).register_forward_hook(lambda m, args, plan: drawn.append(plan.gain_key[args[0].vision].detach()))
        for progress in (0.0, 0.0, 0.5):
            planner(model).progress = progress
            model(**batch, use_cache=False)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1].round(), drawn[2].round())
    first, second = drawn[0].round().view(2, -1)
    assert not torch.equal(first, second)  # samples draw for themselves


def test_progress_is_told_to_the_planners(model):
    class State:
        global_step, max_steps = 3, 12

    with vtskip.attach(model, SPEC):
        Progress(model).on_step_begin(None, State, None)
        assert planner(model).progress == 0.25
    with vtskip.attach(model, "mod"):
        assert not Progress(model).asking


def test_table_of_images():
    rows = rows_of(FAMILIES["qwen2_5_vl"], KINDS)  # frames and images of unequal size
    table, slot = by_image(rows)
    flat = rows.vision.flatten()
    real = table < len(flat)
    assert torch.equal(table[real].sort().values, flat.nonzero().flatten())
    assert torch.equal(table.flatten()[slot[rows.vision]], flat.nonzero().flatten())
    image = rows.group + 1000 * torch.arange(len(rows.vision))[:, None]
    for places in table:
        assert len(set(image.flatten()[places[places < len(flat)]].tolist())) <= 1


# ---------------------------------------------------------------- decoding


def undecided(model):
    """A text predictor that keeps some rows and drops others."""
    generator = torch.Generator().manual_seed(2)
    for parameter in planner(model).predictor.text.parameters():
        parameter.data.normal_(generator=generator)


def decoded(model, batch, steps, **kwargs):
    """Logits of text rows fed one by one behind a batch, and the cache."""
    mask, cache, found = batch["attention_mask"], DynamicCache(config=model.config), []
    with torch.no_grad():
        model(**batch, past_key_values=cache, **kwargs)
        for step in steps.T:
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            given = dict(input_ids=step[:, None], position_ids=mask.sum(1, keepdim=True) - 1, attention_mask=mask)
            found.append(model(**given, past_key_values=cache).logits)
    return torch.cat(found, 1), cache, mask


@pytest.mark.parametrize(("margin", "grows"), [(5.0, 6), (-5.0, 0)])
def test_rows_enter_the_later_layers_or_none(model, margin, grows):
    batch, steps = TINY.batch(["long", "short"]), torch.arange(3, 15).view(2, 6)
    with vtskip.attach(model, SPEC):
        favour(model, margin)
        _, cache, _ = decoded(model, batch, steps)
        with torch.no_grad():
            model(**batch, past_key_values=(before := DynamicCache(config=model.config)))
    grown = [stored_slots(a) - stored_slots(b) for a, b in zip(cache.layers, before.layers)]
    assert grown == [6, grows, grows, grows] and {layer.get_seq_length() for layer in cache.layers} == {
        batch["input_ids"].shape[1] + 6
    }


class Fixed(LayerPlanner):
    """Rows that are seen, and by others than themselves."""

    every_step = True

    def __init__(self, live, weight):
        super().__init__()
        self.live, self.weight = live, weight

    def forward(self, rows, hidden):
        plan = LayerPlan.of(rows.everything)
        plan.expose = copy.copy(rows.everything)
        plan.expose.mask, plan.gain_key = self.live, self.weight
        return plan


@pytest.mark.parametrize("side", ["left", "right"])
def test_decoding_is_attention_without_the_rows_that_were_dropped(model, side):
    """Each generated row sees itself and what was kept; against one pass over all rows with the same decisions."""
    kinds, steps = ["long", "short"], torch.arange(3, 19).view(2, 8)
    batch = TINY.batch(kinds, side)
    with vtskip.attach(model, SPEC) as handle:
        undecided(model)
        stored = []
        planner(model).register_forward_hook(
            lambda m, args, plan: None if args[0].has_vision else stored.append(plan.cache.mask)
        )
        ours, cache, mask = decoded(model, batch, steps)
        live = handle.last_plans[1].attend.mask
    stored = torch.cat(stored, 1)
    assert 0 < int(stored.sum()) < stored.numel() and not torch.equal(*stored)
    shared = int(stored.any(0).sum())  # a row has a place where any sample stores one
    assert stored_slots(cache.layers[2]) == max(live.sum(1).tolist()) + shared < stored_slots(cache.layers[0])

    whole = dict(batch, input_ids=torch.cat([batch["input_ids"], steps], 1), attention_mask=mask)
    whole["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    rows = rows_of(TINY, kinds, side)
    pad = torch.nn.functional.pad
    for name in ("vision", "valid"):
        setattr(rows, name, pad(getattr(rows, name), (0, 8), value=name == "valid"))
    rows.text_counts = tuple(n + 8 for n in rows.text_counts)
    fixed = Fixed(torch.cat([live, torch.ones_like(stored)], 1), torch.cat([live, stored], 1).double())
    with masked(model, [None, fixed, fixed, fixed], rows), torch.no_grad():
        expected = model(**whole, use_cache=False).logits[:, -8:]
    assert (ours - expected).abs().max() <= 1e-10


def test_the_first_row_of_a_sequence_stays(model):
    with vtskip.attach(model, SPEC), torch.no_grad():
        favour(model, -5.0)
        model(input_ids=torch.tensor([[5]]), past_key_values=(cache := DynamicCache(config=model.config)))
    assert [stored_slots(layer) for layer in cache.layers] == [1] * 4


def test_saved_and_loaded(model, tmp_path):
    batch = TINY.batch(["long", "short"])
    stock = copy.deepcopy(model)
    with torch.no_grad():
        vtskip.attach(model, SPEC)
        for parameter in planner(model).parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        expected = model(**batch).logits
        save_pretrained(model, tmp_path)
        handle = vtskip.load_pretrained(stock, tmp_path)
        assert handle is not None and torch.equal(stock(**batch).logits, expected)
