"""AIM: frames of any size merged in their places, rows that leave with depth, settings that cannot be."""

import pytest
import torch

import vtskip
from tests.tiny import FAMILIES
from vtskip.errors import ConfigError
from vtskip.methods import get_method
from vtskip.methods.aim import merge_to
from vtskip.plan import SCORES
from vtskip.runtime import layer

MERGE = {"name": "aim", "keep": 0.3, "first": None}
TINY = FAMILIES["llava-llama"]


@pytest.mark.parametrize("size", [1, 2, 3, 9, 10, 16])
@pytest.mark.parametrize("keep", [0.1, 0.25, 0.5, 0.9])
def test_any_size_is_merged_to_its_share_in_order(size, keep):
    x = torch.randn(3, size, 6, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    target = max(1, -int(-keep * size // 1))
    merged, places = merge_to(x, target)
    assert merged.shape == (3, target, 6) and (places.diff(dim=1) > 0).all() and places.max() < size
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    assert ((merged >= low) & (merged <= high)).all()  # means


def test_merging_one_round_by_hand():
    """Sources 0, 2, 4; destinations 1, 3. Row 0 is row 3's twin and row 4 lies near 1; row 2 is like neither."""
    x = torch.tensor([[[0.0, 2.0], [2.0, 0.1], [-1.0, -1.0], [0.0, 1.0], [4.0, 0.0]]])
    merged, places = merge_to(x, 3)
    assert places.tolist() == [[1, 2, 3]]
    assert torch.allclose(merged, torch.tensor([[[3.0, 0.05], [-1.0, -1.0], [0.0, 1.5]]]))


def test_merging_alone_is_the_stock_model_on_fewer_rows():
    """The language model, given the merged rows at the positions of their places."""
    model, batch = TINY.model(), TINY.batch(["long"])
    inputs = []
    decoder = model.get_decoder()
    hook = decoder.register_forward_pre_hook(
        lambda m, args, kwargs: inputs.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with vtskip.attach(model, MERGE) as handle, torch.no_grad():
        ours = model(**batch).logits
        live, rows = handle.last_plans[0].attend.mask[0], handle.last_rows
    hook.remove()
    embeds = inputs[0].clone()
    for g in range(2):
        places = (rows.group[0] == g).nonzero().flatten()
        merged, at = merge_to(embeds[:, places], 5)  # of 16
        embeds[:, places[at[0]]] = merged
    assert int(live.sum()) == rows.text_counts[0] + 10
    with torch.no_grad():
        hidden = decoder(inputs_embeds=embeds[:, live], position_ids=batch["position_ids"][:, live]).last_hidden_state
        expected = model.lm_head(hidden)
    assert (ours[:, live] - expected).abs().max() <= TINY.tolerance


def test_rows_leave_for_good_those_first_that_least_reaches():
    model, batch = TINY.model(), TINY.batch(["long", "short", "text"])
    with vtskip.attach(model, {"name": "aim", "keep": 1.0, "first": 0, "stop": 3}) as handle, torch.no_grad():
        model(**batch)
        plans, rows = handle.last_plans, handle.last_rows
    vision = [[int((plans[i].attend.mask[b] & rows.vision[b]).sum()) for b in range(3)] for i in range(4)]
    assert vision == [[32, 16, 0], [21, 10, 0], [10, 5, 0], [0, 0, 0]]  # 2/3 and 1/3 of them, cut toward zero
    for i in (1, 2):
        before, after = plans[i - 1].attend.mask & rows.vision, plans[i].attend.mask & rows.vision
        score = rows.memo[SCORES, i - 1]
        assert (after & ~before).sum() == 0
        for b in range(2):
            assert score[b][after[b]].min() >= score[b][before[b] & ~after[b]].max()


def test_rows_that_have_left_do_not_return_in_a_tie(monkeypatch):
    """A row that nothing reaches scores as those that are gone: here the early ones, which a tie would prefer."""
    model, batch = TINY.model(), TINY.batch(["long"])
    place = torch.arange(batch["input_ids"].shape[1])[None].double()
    monkeypatch.setattr(layer, "propagated", lambda module, *args: place * (module.vtskip.runtime.index == 0))
    with vtskip.attach(model, {"name": "aim", "keep": 1.0, "first": 0, "stop": 3}) as handle, torch.no_grad():
        model(**batch)
        first, second = (handle.last_plans[i].attend.mask & handle.last_rows.vision for i in (1, 2))
    assert int(first.sum()) == 21 and int(second.sum()) == 10 and not (second & ~first).any()


def test_the_layer_before_the_last_row_leaves_makes_k_and_v_alone():
    model, batch = TINY.model(), TINY.batch(["long"])
    with vtskip.attach(model, {"name": "aim", "keep": 1.0, "first": 0, "stop": 2}) as handle, torch.no_grad():
        model(**batch, logits_to_keep=1)
        second = handle.report().layers[1]
    text = batch["input_ids"].shape[1] - 32
    assert second.attend == text and second.expose == text + 16


@pytest.mark.parametrize(("values", "message"), [({"first": 5, "stop": 5}, "stop 5"), ({"keep": 0.0}, "keep")])
def test_settings_that_cannot_be(values, message):
    with pytest.raises(ConfigError, match=message):
        get_method({"name": "aim", **values})


def test_short_models_are_merged_alone():
    method = get_method("aim")
    with vtskip.attach(TINY.model(), method) as handle:
        assert all(handle.method.rate(i) == 1 for i in range(4)) and method.rate(18) == 0.5
