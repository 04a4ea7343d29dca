"""Every method on every family: the invariants that make skipping safe to use."""

import copy

import pytest
import torch
from transformers import DynamicCache

import vtskip
from tests.methods_matrix import MATRIX
from tests.tiny import FAMILIES

KINDS = ["long", "short", "text"]
METHODS = pytest.mark.parametrize("row", MATRIX, ids=str)


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def model(family):
    return family.model()


def logits(model, batch, **kwargs):
    with torch.no_grad():
        return model(**batch, **kwargs).logits


def close(family, ours, theirs):
    assert (ours - theirs).abs().max() <= family.tolerance


@METHODS
def test_nothing_to_skip_is_the_stock_model_bit_for_bit(model, family, row):
    batch = family.batch(KINDS)
    content = batch["attention_mask"].bool()  # padding is computed or not: nobody reads it
    stock = logits(model, batch)
    for spec in filter(None, (row.nothing, row.all_rows)):
        with vtskip.attach(model, spec, lossless=False):
            assert torch.equal(logits(model, batch)[content], stock[content])
        with vtskip.attach(model, spec):  # without the padding sums are of the same numbers, but in another order
            close(family, logits(model, batch)[content], stock[content])


@METHODS
def test_skips_and_detaches_bit_for_bit(model, family, row):
    batch, keys = family.batch(KINDS), list(model.state_dict())
    stock = logits(model, batch)
    with vtskip.attach(model, row.spec) as handle:
        assert (logits(model, batch) - stock).abs().max() > 1e-3
        report = handle.report()
        assert report.flops_full < report.flops_full_dense
        assert min(layer.kept_ffn for layer in report.layers) < row.kept_ffn
    assert torch.equal(logits(model, batch), stock)
    assert list(model.state_dict()) == keys
    assert not any("forward" in layer.__dict__ or hasattr(layer, "vtskip") for layer in model.get_decoder().layers)


@METHODS
def test_text_only_is_the_stock_model_bit_for_bit(model, family, row):
    if not row.text_is_stock:
        pytest.skip("decides about text too")
    batch = family.batch(["text", "text"])
    stock = logits(model, batch)
    with vtskip.attach(model, row.spec):
        assert torch.equal(logits(model, batch), stock)


@METHODS
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch_equals_single_samples(model, family, row, side):
    batch = family.batch(KINDS, side)
    mask = batch["attention_mask"].bool()
    with vtskip.attach(model, row.spec):
        together = logits(model, batch)
        for i, kind in enumerate(KINDS):
            close(family, together[i][mask[i]], logits(model, family.batch([kind]))[0])


def positions(model, family, batch):
    """The position ids of the whole sequence, as the model itself would number it."""
    if not family.mrope:
        return batch["position_ids"]
    grids = {k: batch[k] for k in ("image_grid_thw", "video_grid_thw", "second_per_grid_ts") if k in batch}
    ids, _ = model.model.get_rope_index(
        batch["input_ids"],
        mm_token_type_ids=batch["mm_token_type_ids"],
        attention_mask=batch["attention_mask"],
        **grids,
    )
    return ids


@METHODS
@pytest.mark.parametrize("side", ["left", "right"])
def test_cached_steps_equal_recomputation(model, family, row, side):
    """Three more text rows, one at a time and then two at once, after a padded batch with images."""
    if not (row.causal_cache and row.recomputed):
        pytest.skip("later rows see less, or take part in the selection, by design")
    batch = family.batch(KINDS, side)
    ids = positions(model, family, batch)
    more = torch.tensor([[7, 8, 9]] * len(KINDS))
    last = ids.amax(dim=-1, keepdim=True)
    full_ids = torch.cat([ids, last + torch.arange(1, 4)], -1)
    full_mask = torch.cat([batch["attention_mask"], torch.ones_like(more)], 1)
    whole = dict(
        batch, input_ids=torch.cat([batch["input_ids"], more], 1), attention_mask=full_mask, position_ids=full_ids
    )
    for name in family.types(more):
        whole[name] = torch.nn.functional.pad(batch[name], (0, 3), value=family.next_type)
    length = batch["input_ids"].shape[1]
    with vtskip.attach(model, row.spec):
        expected = logits(model, whole)[:, length:]
        cache = DynamicCache(config=model.config)
        logits(model, dict(batch, position_ids=ids), past_key_values=cache)
        steps = []
        for start, stop in ((0, 1), (1, 3)):
            step = dict(
                input_ids=more[:, start:stop],
                attention_mask=full_mask[:, : length + stop],
                position_ids=full_ids[..., length + start : length + stop],
            )
            steps.append(logits(model, step, past_key_values=cache))
    close(family, torch.cat(steps, 1), expected)


@METHODS
def test_image_by_image_equals_one_shot(model, family, row):
    """The same sample, one image or video at a time with a cache, then crop by logical position and go on."""
    if not (row.causal_cache and row.chunked and family.chunked):
        pytest.skip("later rows see less, or all images compete or see each other, by design")
    batch = family.batch(["long"])
    ids, (tokens, parts, _) = positions(model, family, batch), family.sample("long")
    second = family.starts("long")[1]
    cuts = [(0, second, parts[0]), (second, len(tokens), parts[1])]
    with vtskip.attach(model, row.spec):
        expected = logits(model, batch)
        cache = DynamicCache(config=model.config)
        pieces = []
        for start, stop, vision in cuts:
            piece = {k: v.to(family.dtype) if v.is_floating_point() else v for k, v in vision.items()}
            piece.update(input_ids=batch["input_ids"][:, start:stop], position_ids=ids[..., start:stop])
            for name in family.types(batch["input_ids"]):  # Gemma 3 reads them by position, from the first row on
                piece[name] = batch[name][:, (0 if name == "token_type_ids" else start) : stop]
            pieces.append(logits(model, piece, past_key_values=cache))
        close(family, torch.cat(pieces, 1), expected)
        if any(getattr(layer, "is_sliding", False) for layer in cache.layers):
            return  # rows that left the window cannot come back
        cache.crop(-3)
        again = dict(input_ids=batch["input_ids"][:, -3:], position_ids=ids[..., -3:])
        close(family, logits(model, again, past_key_values=cache), expected[:, -3:])


@METHODS
def test_generate(model, family, row):
    """Greedy, beams and sampling with several sequences, on a left-padded batch; each sample as if it were alone."""
    batch = family.batch(KINDS)
    batch.pop("position_ids", None)
    settings = dict(max_new_tokens=4, min_new_tokens=4)
    with vtskip.attach(model, row.spec) as handle:
        prompt = logits(model, batch)[:, -1]
        sizes = handle.last_rows.sizes
        greedy = model.generate(**batch, do_sample=False, **settings)[:, -4:]
        assert handle.last_rows.sizes == sizes == tuple(tuple(family.sample(kind)[2]) for kind in KINDS)
        first = prompt.index_fill(1, torch.tensor([2]), -torch.inf).argmax(-1)  # min_new_tokens forbids eos
        assert torch.equal(first, greedy[:, 0])
        for i, kind in enumerate(KINDS):
            single = family.batch([kind])
            single.pop("position_ids", None)
            assert torch.equal(model.generate(**single, do_sample=False, **settings)[0, -4:], greedy[i])
        if not family.beams:
            return
        beams = model.generate(**batch, do_sample=False, num_beams=3, num_return_sequences=2, **settings)[:, -4:]
        assert handle.last_rows.sizes == tuple(row for row in sizes for _ in range(3))
        torch.manual_seed(0)
        sampled = model.generate(**batch, do_sample=True, num_return_sequences=2, **settings)[:, -4:]
        assert beams.shape == sampled.shape == (2 * len(KINDS), 4)
        for i, kind in enumerate(KINDS):
            single = family.batch([kind])
            single.pop("position_ids", None)
            alone = model.generate(**single, do_sample=False, num_beams=3, num_return_sequences=2, **settings)
            assert torch.equal(alone[:, -4:], beams[2 * i : 2 * i + 2])


@METHODS
def test_gradient_checkpointing_recomputes_and_changes_nothing(model, family, row):
    batch = family.batch(KINDS)
    calls = []

    def losses_and_gradients(model):
        model.zero_grad()
        # before the FFN: recomputation stops early, inside the last operation it needs
        hooks = [
            layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1)) for layer in model.get_decoder().layers
        ]
        loss = model(**batch, use_cache=False).logits.square().mean()
        loss.backward()
        for hook in hooks:
            hook.remove()
        count = len(calls)
        calls.clear()
        return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, count

    trained = copy.deepcopy(model).train()
    with vtskip.attach(trained, row.spec):
        loss, gradients, plain = losses_and_gradients(trained)
        # The name since transformers 5.2x, and the one before it.
        enable = getattr(trained, "activation_checkpointing_enable", None) or trained.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        again, replayed, recomputed = losses_and_gradients(trained)
        assert recomputed == 2 * plain == 2 * len(trained.get_decoder().layers)
        close(family, again, loss)
        assert replayed.keys() == gradients.keys()
        for name, gradient in gradients.items():
            close(family, replayed[name], gradient)


@METHODS
def test_deepcopy_is_independent(model, family, row):
    batch = family.batch(["long", "short"])
    with vtskip.attach(model, row.spec):
        expected = logits(model, batch)
        twin = copy.deepcopy(model)
        for parameter in model.get_decoder().layers[1].parameters():
            assert parameter is not None
        assert torch.equal(logits(twin, batch), expected)
        for parameter in twin.get_decoder().parameters():
            parameter.data.zero_()
        assert torch.equal(logits(model, batch), expected)
