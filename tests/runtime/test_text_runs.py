"""Text that reads frozen vision rows reads them run by run, and to the same result."""

import numpy as np
import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import vtskip
from tests.tiny import TEXT
from vtskip.runtime import text_runs
from vtskip.runtime.text_runs import shared_runs

SHORTV = {"name": "shortv", "layers": [1, 2]}


@pytest.fixture
def seen(monkeypatch):
    """Queries and keys of every call of the attention."""
    calls, attend = [], text_runs.attended

    def attended(attn, q, k, v, mask_of, in_order):
        calls.append((q.shape[2], k.shape[2]))
        return attend(attn, q, k, v, mask_of, in_order)

    monkeypatch.setattr(text_runs, "attended", attended)
    return calls


def model_and_rows(shift=0):
    torch.manual_seed(0)
    vision = torch.zeros(2, 20, dtype=torch.bool)
    vision[0, 3:13] = vision[1, 3 + shift : 13 + shift] = True
    return LlamaForCausalLM(LlamaConfig(**TEXT)).double().eval(), torch.randint(3, 90, (2, 20)), vision


@pytest.mark.parametrize(("shift", "runs"), [(0, [(3, 3), (7, 20)]), (2, [(3, 3), (2, 15), (5, 20)])])
def test_runs_read_what_they_can_see_and_give_the_same(seen, monkeypatch, shift, runs):
    model, ids, vision = model_and_rows(shift)
    weight = torch.randn(2, 20, TEXT["vocab_size"], dtype=torch.float64)
    results = []
    for parts in (True, False):
        if not parts:
            monkeypatch.setattr(text_runs, "runs_of", lambda ex, keys: None)
        with vtskip.attach(model, SHORTV) as handle, handle.rows(vision):
            seen.clear()
            cache = DynamicCache(config=model.config)
            logits = model(ids, past_key_values=cache).logits
            gradients = torch.autograd.grad((logits * weight).sum(), list(model.model.parameters()))
        assert seen == (runs * 2 if parts else [(10, 20)] * 2)
        results.append([logits, *(layer.keys for layer in cache.layers), *gradients])
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max()  # norms compute in float32


def test_a_mask_that_shows_later_rows_is_read_whole(seen):
    """A prefix that sees itself in both directions: the text before the images reads them."""
    model, ids, vision = model_and_rows()
    mask = torch.ones(20, 20, dtype=torch.bool).tril()
    mask[:15, :15] = True
    with torch.no_grad(), vtskip.attach(model, SHORTV) as handle, handle.rows(vision):
        seen.clear()  # attaching tries each layer
        model(ids, attention_mask=mask.expand(2, 1, 20, 20))
    assert seen == [(10, 20)] * 2


def test_steps_on_a_cache_read_all_of_it(seen):
    model, ids, vision = model_and_rows()
    with torch.no_grad(), vtskip.attach(model, SHORTV) as handle, handle.rows(vision):
        expected = model(ids).logits
        seen.clear()
        cache = DynamicCache(config=model.config)
        parts = [model(ids[:, a:b], past_key_values=cache).logits for a, b in ((0, 8), (8, 20))]
    assert all(keys >= 12 for queries, keys in seen if queries > 3)
    assert (torch.cat(parts, 1) - expected).abs().max() <= 1e-12


def test_few_runs_that_save_something():
    text = np.zeros((2, 40), bool)
    assert shared_runs(text) is None  # nobody asks
    text[:, 30:] = True
    assert shared_runs(text) is None  # one run, which sees all
    text[:, :10] = True
    assert shared_runs(text) == [(0, 10, 10), (10, 20, 40)]
    text[:, :10], text[:, 20:] = False, True
    text[:, 10:12] = True
    assert shared_runs(text) is None  # 2 of 22 rows save little
    text[:] = False
    text[:, ::4] = True
    assert shared_runs(text) is None  # ten runs
