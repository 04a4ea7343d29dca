"""Nothing is global: models with different methods, in one process and in several threads at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import vtskip
from tests.tiny import FAMILIES
from vtskip.errors import ModelError

TINY = FAMILIES["llava-llama"]
SPECS = [
    {"name": "mod", "keep": 0.3},
    {"name": "shortv", "layers": [0, 2]},
    {"name": "gamma_mod", "schedule": {"kind": "constant"}},
    None,
]


def make(spec):
    model = TINY.model(torch.float32)
    if spec is not None:
        vtskip.attach(model, spec)
    return model


def answer(model):
    batch = TINY.batch(["long", "short"], dtype=torch.float32)
    with torch.no_grad():
        logits = model(**batch).logits
    batch.pop("position_ids")
    return logits, model.generate(**batch, do_sample=False, max_new_tokens=4, min_new_tokens=4)


def same(ours, theirs) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs))


def test_models_with_different_methods_in_one_process():
    alone = [answer(make(spec)) for spec in SPECS]
    assert not any(same(one, other) for i, one in enumerate(alone) for other in alone[:i])
    models = [make(spec) for spec in SPECS]
    for model, expected in [*zip(models, alone), *reversed(list(zip(models, alone)))]:
        assert same(answer(model), expected)


def test_models_with_different_methods_in_threads_that_run_at_the_same_time():
    """Every thread waits inside its second layer until all of them are there."""
    alone = [answer(make(spec)) for spec in SPECS]
    models = [make(spec) for spec in SPECS]
    together = threading.Barrier(len(SPECS), timeout=60)

    def wait(*_):
        together.wait()

    hooks = [model.get_decoder().layers[1].mlp.register_forward_pre_hook(wait) for model in models]
    with ThreadPoolExecutor(len(SPECS)) as pool:
        answers = list(pool.map(answer, models))
    for hook in hooks:
        hook.remove()
    assert all(same(ours, theirs) for ours, theirs in zip(answers, alone))


def test_attaching_in_one_thread_does_not_reach_another():
    dense, expected = make(None), answer(make(None))
    attached, done = threading.Event(), threading.Event()

    def attach():
        with vtskip.attach(TINY.model(torch.float32), "mod"):
            attached.set()
            done.wait(60)

    thread = threading.Thread(target=attach)
    thread.start()
    assert attached.wait(60)
    try:
        assert same(answer(dense), expected)
    finally:
        done.set()
        thread.join()


def test_one_model_in_two_threads_at_once_is_refused_and_the_first_is_right():
    model, expected = make(SPECS[0]), answer(make(SPECS[0]))
    inside, tried = threading.Event(), threading.Event()

    def wait(*_):
        inside.set()
        tried.wait(60)

    hook = model.get_decoder().layers[1].mlp.register_forward_pre_hook(wait)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(answer, model)
        assert inside.wait(60)
        try:
            with pytest.raises(ModelError, match="running in another thread"):
                model(**TINY.batch(["short"], dtype=torch.float32))
        finally:
            tried.set()
        assert same(first.result(60), expected)
    hook.remove()
    assert same(answer(model), expected)


def test_a_forward_that_failed_does_not_lock_other_threads_out():
    model, expected = make(SPECS[0]), answer(make(SPECS[0]))
    batch = TINY.batch(["short"], dtype=torch.float32)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    for wrong in ({"inputs_embeds": embeds, "pixel_values": batch["pixel_values"]}, batch | {"pixel_values": embeds}):
        with pytest.raises((ModelError, ValueError, RuntimeError)):
            model(**wrong)
    with ThreadPoolExecutor(1) as pool:
        assert same(pool.submit(answer, model).result(60), expected)


@pytest.mark.parametrize("where", ["vision_tower", "layer", "head"])
def test_an_interrupted_forward_leaves_nothing_behind(where):
    """torch calls no hook after Ctrl-C."""
    model, batch = make(SPECS[0]), TINY.batch(["long", "short"], dtype=torch.float32)
    part = {"vision_tower": model.model.vision_tower, "layer": model.get_decoder().layers[2].mlp, "head": model.lm_head}

    def hidden():
        with torch.no_grad():
            return model.model(**batch).last_hidden_state

    def interrupt(*_):
        raise KeyboardInterrupt

    expected = hidden()
    for ask in ({"logits_to_keep": 1}, {"labels": batch["input_ids"]}):
        model.train("labels" in ask)
        hook = part[where].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(**batch, **ask)
        hook.remove()
        with ThreadPoolExecutor(1) as pool:
            assert torch.equal(pool.submit(hidden).result(60), expected)
        assert torch.equal(hidden(), expected)


def test_a_refused_call_does_not_reach_the_training_step_it_met():
    def gradients(model):
        batch = TINY.batch(["long", "short"], "right", dtype=torch.float32)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model.train()(**batch, labels=labels).loss
        loss.backward()
        return [loss, *(p.grad for p in model.parameters() if p.grad is not None)]

    model, expected = make(SPECS[1]), gradients(make(SPECS[1]))
    inside, tried = threading.Event(), threading.Event()

    def wait(*_):
        inside.set()
        tried.wait(60)

    model.get_decoder().layers[1].mlp.register_forward_pre_hook(wait)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(gradients, model)
        assert inside.wait(60)
        try:
            with pytest.raises(ModelError, match="running in another thread"):
                model(**TINY.batch(["short"], dtype=torch.float32))
        finally:
            tried.set()
        assert same(first.result(60), expected)
