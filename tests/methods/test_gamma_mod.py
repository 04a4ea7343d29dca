"""gamma-MoD: which rows compete, what training and inference keep, the shared router and its loss."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import DynamicCache

import vtskip
from tests.tiny import FAMILIES, LAYERS
from vtskip.errors import ModelError
from vtskip.methods import get_method
from vtskip.methods.gamma_mod import prefix
from vtskip.plan import DecoderShape, RowMap, rows_to_keep
from vtskip.saving import method_state

FAMILY = FAMILIES["llava-llama"]
KINDS = ["long", "short", "text"]
EVERY = {"name": "gamma_mod", "schedule": {"kind": "constant"}}
VICUNA_7B = DecoderShape(32, 4096, 11008, 32, 32, 128, 32000)


@pytest.fixture
def model():
    return FAMILY.model()


def logits(model, batch, **kwargs):
    with torch.no_grad():
        return model(**batch, **kwargs).logits


def plan_of(rows, hidden, training=False, weight=None, **options):
    """The plan of one layer, its router's weight ``[2, hidden]`` given or as it starts."""
    spec = {**EVERY, **options}
    (planner,) = get_method(spec).planners(DecoderShape(1, hidden.shape[-1], 8, 1, 1, 8, 8))
    if weight is not None:
        planner.router.weight.data.copy_(weight)
    return planner.train(training)(rows, hidden)


def two_samples():
    """t v v v v t v v t t, and t t v v v v t behind three rows of padding; rows whose first feature is their score."""
    vision = np.array([[0, 1, 1, 1, 1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1, 1, 1, 1, 0]], bool)
    valid = np.array([[1] * 10, [0] * 3 + [1] * 7], bool)
    score = torch.tensor([[3, 1, 2, 5, 4, 9, 8, 7, -9, -9], [99, 99, 99, 6, 1, 2, 3, 4, 5, -9]])
    hidden = torch.stack([score, torch.zeros_like(score)], -1).float() / 10
    return RowMap.build(vision, valid, [[4, 2], [4]]), hidden, torch.tensor([[0.0, 0.0], [1.0, 0.0]])


def places(rows):
    return [row.nonzero().flatten().tolist() for row in rows.mask]


# ---------------------------------------------------------------- which layers, which rows


def test_all_layers_but_the_first_three_and_the_last():
    planners = get_method("gamma_mod").planners(VICUNA_7B)
    assert [i for i, p in enumerate(planners) if p] == list(range(3, 31))


def test_vision_rows_compete_over_the_sample():
    rows, hidden, weight = two_samples()
    plan = plan_of(rows, hidden, weight=weight, keep=0.5)
    assert places(plan.attend) == [[0, 3, 5, 6, 7, 8, 9], [3, 4, 7, 8, 9]]
    assert plan.attend.counts == (7, 5)
    assert plan.attend is plan.expose is plan.ffn is plan.cache
    text = rows.text.mask
    assert (plan.gain_ffn[text] == 1).all()
    assert torch.allclose(plan.gain_ffn[rows.vision], hidden[..., 0].sigmoid()[rows.vision])


def test_published_form_ranks_everything_up_to_the_last_image_and_weighs_text():
    rows, hidden, weight = two_samples()
    plan = plan_of(rows, hidden, weight=weight, keep=0.5, text="routed", training=True)
    # 8 and 6 routable rows, the rows behind them protected whatever their score; padding is neither
    assert places(plan.attend) == [[3, 5, 6, 7, 8, 9], [3, 7, 8, 9]]
    assert plan.attend.counts == (6, 4)
    assert torch.allclose(plan.gain_ffn, hidden[..., 0].sigmoid())


def test_threshold_judges_each_row_alone():
    rows, hidden, weight = two_samples()
    options = {"weight": weight, "inference": "threshold", "threshold": torch.tensor(0.45).sigmoid().item()}
    assert places(plan_of(rows, hidden, **options).attend) == [[0, 3, 5, 6, 7, 8, 9], [3, 4, 8, 9]]
    assert places(plan_of(rows, hidden, text="routed", **options).attend) == [[3, 5, 6, 7], [3, 8]]
    training = plan_of(rows, hidden, training=True, keep=0.5, **options)
    assert training.attend.counts == (7, 5)
    # p = 0.5 of an untrained zero router is far above the published 0.005
    zero = {"weight": torch.zeros(2, 2), "inference": "threshold"}
    assert plan_of(rows, hidden, **zero).attend.counts == rows.everything.counts


@pytest.mark.parametrize("text", ["dense", "routed"])
def test_training_and_inference_keep_the_same_rows(model, text):
    batch = FAMILY.batch(KINDS)
    with vtskip.attach(model, {**EVERY, "keep": 0.34, "text": text}) as handle:
        kept = []
        for mode in (True, False):
            model.train(mode)
            logits(model, batch)
            kept.append([handle.last_plans[i].attend.counts for i in range(LAYERS)])
        assert kept[0] == kept[1]
        if text == "dense":
            vision = [sum(groups) for groups in handle.last_rows.sizes]
            counts = [t + rows_to_keep(0.34, n) for t, n in zip(handle.last_rows.text_counts, vision)]
            assert kept[0] == [tuple(counts)] * LAYERS


# ---------------------------------------------------------------- decoding


def test_decode_threshold_leaves_out_later_rows_but_never_the_prompt(model):
    batch = FAMILY.batch(["text", "short"])
    step = {
        "input_ids": torch.tensor([[7], [9]]),
        "attention_mask": torch.nn.functional.pad(batch["attention_mask"], (0, 1), value=1),
    }
    for threshold, rows in ((None, 1), (0.0, 1), (1.0, 0)):
        with vtskip.attach(model, {**EVERY, "keep": 1.0, "decode_threshold": threshold}) as handle:
            cache = DynamicCache()
            logits(model, FAMILY.batch(["text", "short"]), past_key_values=cache)
            before = [layer.keys.shape[2] for layer in cache.layers]
            handle.reset()
            logits(model, step, past_key_values=cache)
            assert [layer.keys.shape[2] for layer in cache.layers] == [n + rows for n in before]
            assert [layer.ffn for layer in handle.report().layers] == [2 * rows] * LAYERS
            assert cache.get_seq_length() == batch["input_ids"].shape[1] + 1
    with vtskip.attach(model, {**EVERY, "decode_threshold": 1.0}):
        text = FAMILY.batch(["text", "text"])
        routed = logits(model, text)
    assert torch.equal(routed, logits(model, text))


@pytest.mark.parametrize("name", ["qwen2_5_vl", "gemma3"])
def test_compact_positions_are_refused_where_rows_have_several(name):
    model = FAMILIES[name].model()
    with pytest.raises(ModelError, match="gamma_mod: compact positions need one table of 1-D rotary positions"):
        vtskip.attach(model, {**EVERY, "positions": "compact"})
    vtskip.attach(model, EVERY).detach()


def test_compact_positions_differ_from_those_of_the_sequence(model):
    batch, outputs = FAMILY.batch(KINDS), []
    for positions in ("keep", "compact"):
        with vtskip.attach(model, {**EVERY, "keep": 0.4, "positions": positions}):
            outputs.append(logits(model, batch))
    assert (outputs[0] - outputs[1]).abs().max() > 1e-4


@pytest.mark.parametrize(
    "options", [{}, {"text": "routed", "positions": "compact"}, {"inference": "threshold", "threshold": 0.5}]
)
def test_counts_rounded_up_for_compiling_change_nothing(model, options):
    batch, outputs = FAMILY.batch(KINDS), []
    content = batch["attention_mask"].bool()
    for bucket in (None, 7):
        with vtskip.attach(model, {**EVERY, "keep": 0.4, **options}, bucket=bucket):
            outputs.append(logits(model, batch)[content])
    assert (outputs[0] - outputs[1]).abs().max() < 1e-12


# ---------------------------------------------------------------- the router and its loss


def test_one_router_for_all_layers(model):
    with vtskip.attach(model, EVERY):
        assert list(method_state(model)) == ["layers.0.router.weight"]
        twin = copy.deepcopy(model)
        expected = logits(model, FAMILY.batch(KINDS))
        (router,) = method_state(twin).values()
        router.add_(torch.randn(router.shape, generator=torch.Generator().manual_seed(0)))
        assert torch.equal(logits(model, FAMILY.batch(KINDS)), expected)
        assert (logits(twin, FAMILY.batch(KINDS)) - expected).abs().max() > 1e-4
    with vtskip.attach(model, {**EVERY, "shared": False}):
        weights = list(method_state(model).values())
        assert len(weights) == LAYERS and not torch.equal(weights[0], weights[1])


def test_shared_router_gets_the_gradient_of_every_layer(model):
    model.train()
    gradients = []
    for layers in ([0], [2], [0, 2]):
        with vtskip.attach(model, {**EVERY, "keep": 1.0, "schedule": {"kind": "list", "layers": layers}}) as handle:
            model(**FAMILY.batch(KINDS))
            handle.aux_loss().backward()
            (gradient,) = [p.grad for n, p in model.named_parameters() if "vtskip" in n]
            gradients.append(gradient)
    assert all(g.abs().max() > 1e-6 for g in gradients)
    assert (gradients[2] - gradients[0]).abs().max() > 1e-6 and (gradients[2] - gradients[1]).abs().max() > 1e-6


@pytest.mark.parametrize(("init", "bound"), [("kaiming", 1 / 8), ("xavier", (6 / 66) ** 0.5)])
def test_initial_weights_fill_their_bounds(init, bound):
    shape = DecoderShape(5, 64, 8, 1, 1, 64, 8)
    weight = get_method({**EVERY, "init": init}).planners(shape)[0].router.weight
    assert 0.9 * bound < weight.abs().max() <= bound


@pytest.mark.parametrize("text", ["dense", "routed"])
def test_auxiliary_loss_is_the_mean_cross_entropy_per_layer_and_joins_the_training_loss(model, text):
    batch, model = FAMILY.batch(KINDS), model.train()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    seen = []
    with vtskip.attach(model, {**EVERY, "keep": 0.5, "text": text, "aux_weight": 0.3}) as handle:
        for layer in model.get_decoder().layers:
            layer.vtskip.register_forward_hook(lambda planner, args, plan: seen.append((args[1], plan.attend.mask)))
        total = model(**batch, labels=labels, use_cache=False).loss
        (weight,) = method_state(model).values()
        rows, expected = handle.last_rows, 0.0
        for hidden, kept in seen:
            p = (hidden.double() @ weight.T).softmax(-1)
            loss = -torch.where(kept, p[..., 1], p[..., 0]).log()
            expected += 0.3 * loss[rows.vision if text == "dense" else rows.valid].mean()
        assert len(seen) == LAYERS
        assert handle.aux_loss().item() == pytest.approx(expected.item(), rel=1e-6)
        model.eval()
        assert (total - model(**batch, labels=labels, use_cache=False).loss).item() == pytest.approx(
            expected.item(), rel=1e-6
        )


def test_auxiliary_loss_of_micro_batches_is_a_mean(model):
    """As the Trainer accumulates: each loss is divided by the labels of all micro-batches, but those that nothing predicts."""
    model.train()
    with vtskip.attach(model, {**EVERY, "aux_weight": 0.3}) as handle:
        batches, added = [FAMILY.batch([kind]) for kind in ("long", "short")], 0.0
        items, alone = sum(b["input_ids"].numel() - 1 for b in batches), []
        for batch in batches:
            loss = model(**batch, labels=batch["input_ids"], num_items_in_batch=items).loss
            alone.append((handle.aux_loss().item(), (batch["input_ids"].numel() - 1) / items))
            with_labels = {"labels": batch["input_ids"], "num_items_in_batch": items}
            added += loss.item() - model.eval()(**batch, **with_labels).loss.item()
            model.train()
        assert added == pytest.approx(sum(aux * share for aux, share in alone), rel=1e-6)


def test_a_batch_without_images_adds_no_loss(model):
    batch = FAMILY.batch(["text"])
    stock = model(**batch, labels=batch["input_ids"]).loss.item()
    model.train()
    with vtskip.attach(model, EVERY) as handle:
        assert model(**batch, labels=batch["input_ids"]).loss.item() == stock
        assert handle.aux_loss().item() == 0


def test_prefixes_are_counted_on_the_host():
    """The rows up to a sample's last vision row, padding left out; of a sample without images, none."""
    vision, valid = np.zeros((3, 9), bool), np.ones((3, 9), bool)
    vision[0, 2:5] = vision[0, 6] = vision[1, 3:5] = True
    valid[1, :2] = valid[0, 7:] = valid[2, 0] = False
    rows = RowMap.build(vision, valid)
    assert prefix(rows).sizes == ((7,), (3,), ())
    without = replace(rows, memo={})
    assert prefix(without).sizes == prefix(rows).sizes and torch.equal(prefix(without).group, prefix(rows).group)
