"""Rows of the last layer that nothing reads are not computed, and nobody can tell by the logits."""

import pytest
import torch
from transformers import DynamicCache

import vtskip
from tests.methods_matrix import MATRIX
from tests.tiny import FAMILIES
from vtskip.runtime.slots import or_true
from vtskip.runtime.unread import unread_of

METHODS = pytest.mark.parametrize("row", MATRIX, ids=str)


@pytest.fixture(scope="module", params=["llava-llama", "llava-mistral", "qwen2_5_vl"])
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def model(family):
    return family.model()


def attached(model, family, row, **options):
    if row.compact and family.mrope:
        pytest.skip("compact positions need one table of 1-D positions")
    return vtskip.attach(model, row.spec, **options)


def content(layer, real):
    """Which slots of a cache layer hold rows that are not padding."""
    if getattr(layer, "pos", None) is None:
        return real[:, -layer.keys.shape[2] :]
    return or_true(layer.ok, layer.pos) & real[list(layer.samples or range(len(real)))].gather(1, layer.pos)


@METHODS
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_and_cache_are_the_same(model, family, row, side):
    batch = family.batch(["long", "short", "text"], side)
    real = batch["attention_mask"].bool()
    outputs = {}
    for on in (True, False):
        with torch.no_grad(), attached(model, family, row, lossless=on) as handle:
            for k in (1, 3):
                handle.reset()
                cache = DynamicCache(config=model.config)
                logits = model(**batch, past_key_values=cache, logits_to_keep=k).logits
                outputs[on, k] = logits[real[:, -k:]], cache, handle.report()
    for k in (1, 3):
        (ours, cache, report), (all_rows, whole, full) = outputs[True, k], outputs[False, k]
        assert len(ours) and (ours - all_rows).abs().max() <= family.tolerance
        for layer, other in zip(cache.layers, whole.layers):
            assert layer.keys.shape == other.keys.shape
            held = content(layer, real)
            ours, theirs = (x.keys.transpose(1, 2)[held] for x in (layer, other))  # on padding they may hold anything
            assert ((ours - theirs).abs() <= family.tolerance).all()
        assert report.kept_vision == full.kept_vision and report.kv_bytes == full.kv_bytes
        if not row.compact and full.layers[-1].attend:
            for ran in (report.layers[-1].attend, report.layers[-1].ffn):
                assert int(real[:, -k:].sum()) <= ran <= 3 * k
            assert report.layers[-1].expose <= full.layers[-1].expose and report.flops_full < full.flops_full
        assert all(x.attend <= y.attend for x, y in zip(report.layers[:-1], full.layers[:-1]))  # without padding


def test_every_row_runs_where_something_reads_it(model, family):
    batch = family.batch(["long", "short"])
    with torch.no_grad(), vtskip.attach(model, "mod") as handle:
        for more in ({}, {"logits_to_keep": 1, "output_hidden_states": True}, {"logits_to_keep": torch.tensor([0])}):
            handle.reset()
            model(**batch, **more)
            assert handle.report().layers[-1].attend > 2
        handle.reset()
        model(**batch, logits_to_keep=1)
        assert handle.report().layers[-1].attend == 2
        handle.reset()
        model.train()
        model(**batch, logits_to_keep=1)
        model.eval()
        assert handle.report().layers[-1].attend > 2


def test_generate_runs_one_row_of_the_prompt(model, family):
    batch = family.batch(["long", "short"])
    batch.pop("position_ids", None)
    settings = dict(max_new_tokens=4, min_new_tokens=4, do_sample=False)
    tokens, rows = {}, {}
    for on in (True, False):
        with vtskip.attach(model, "dense", lossless=on) as handle:
            tokens[on] = model.generate(**batch, **settings)
            rows[on] = handle.report().layers[-1].attend
    assert torch.equal(tokens[True], tokens[False])
    assert rows[True] == 2 * 4 and rows[False] == 2 * (batch["input_ids"].shape[1] + 3)


@METHODS
def test_a_prompt_that_ends_in_vision_rows(row):
    """Some of the last rows are then skipped by the method itself, and keep what it leaves them."""
    if row.moves or "vit" in str(row.spec) or "cls" in str(row.spec):
        pytest.skip("needs real images")
    llama = FAMILIES["llava-llama"].model()
    ids, vision = torch.arange(3, 23)[None], torch.arange(20)[None] >= 8
    logits = {}
    for on in (True, False):
        with torch.no_grad(), vtskip.attach(llama, row.spec, lossless=on) as handle, handle.rows(vision):
            logits[on] = llama(input_ids=ids, logits_to_keep=9).logits
    assert (logits[True] - logits[False]).abs().max() <= 1e-12


# ---------------------------------------------------------------- vision rows that no later layer reads


class Skipping:
    def __init__(self, skips):
        self.skips_vision = skips


@pytest.mark.parametrize(
    ("skips", "unread"),
    [
        ("0000", ["none", "none", "none", "rest"]),
        ("0011", ["none", "vision", "none", "rest"]),
        ("0101", ["none", "none", "vision", "rest"]),
        ("0110", ["none", "none", "none", "rest"]),
        ("1111", ["none", "none", "none", "rest"]),
    ],
)
def test_the_layer_before_vision_leaves(skips, unread):
    assert unread_of([Skipping(True) if c == "1" else None for c in skips]) == unread


@pytest.mark.parametrize(("spec", "last"), [({"name": "early_exit", "layer": 2}, 1), ("layer_skip", 2)], ids=str)
def test_vision_rows_only_give_k_and_v_where_they_leave(model, family, spec, last):
    batch = family.batch(["long", "short"])
    text = int(batch["attention_mask"].sum()) - sum(sum(family.sample(kind)[2]) for kind in ("long", "short"))
    found = []
    for on in (True, False):
        with torch.no_grad(), vtskip.attach(model, spec, lossless=on) as handle:
            cache = DynamicCache(config=model.config)
            logits = model(**batch, past_key_values=cache, logits_to_keep=1).logits
            found.append((logits, cache.layers[last], handle.report()))
            handle.reset()
            whole = model(**batch).logits
            rows = handle.report().layers[last].attend  # all logits are asked for, those of vision rows too
            assert rows >= int(batch["attention_mask"].sum())
    (ours, layer, report), (theirs, other, full) = found
    assert (ours - theirs).abs().max() <= family.tolerance and (whole[:, -1:] - theirs).abs().max() <= family.tolerance
    real = content(layer, batch["attention_mask"].bool())
    keys, expected = (x.keys.transpose(1, 2)[real] for x in (layer, other))
    assert (keys - expected).abs().max() <= family.tolerance
    assert text <= report.layers[last].attend == report.layers[last].ffn <= 2 * text
    assert report.layers[last].kept == 1.0 and report.layers[last].expose >= int(batch["attention_mask"].sum())
    assert report.flops_full < full.flops_full
