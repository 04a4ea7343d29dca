"""Between the first and the last decoder layer nothing waits for the device: no value is read and no size depends on one."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import vtskip
from tests.methods_matrix import MATRIX
from tests.tiny import FAMILIES, TEXT
from vtskip.runtime.cache import SkipCache
from vtskip.runtime.forget import forget

# What reads values of a tensor on the host, whatever Python calls it: .item(), bool(), .tolist(), indexing by a mask.
READS = {
    torch.ops.aten._local_scalar_dense,
    torch.ops.aten.nonzero,
    torch.ops.aten.masked_select,
    torch.ops.aten.unique_dim,
    torch.ops.aten._unique2,
    torch.ops.aten.repeat_interleave.Tensor.overloadpacket,
    torch.ops.aten.equal,
    torch.ops.aten.is_nonzero,
    torch.ops.aten.item,
}
# Counts that depend on the values themselves cannot be known beforehand: routers with a threshold.
COUNTED = {
    "dynamic_llava",
    "gamma_mod-threshold",
    "gamma_mod-published",
    "mindskip",
    "mindskip-row",
    "mindskip-row-vision",
}
RANKED = {"gamma_mod-threshold", "gamma_mod-published"}  # in training
FAMILY = FAMILIES["llava-llama"]


class Guard(TorchDispatchMode):
    """Names of the operations that read values, and of methods that copy to the host."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "overloadpacket", func)
        masks = name in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_) and any(
            t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1]
        )
        if name in READS or masks:
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def guarded(monkeypatch):
    """``with guarded(model) as seen``: what the decoder's layers, taken together, did that waits for a device."""
    seen, guard = [], []
    for name in ("cpu", "tolist", "numpy", "item", "__bool__", "__int__", "__float__"):
        method = getattr(torch.Tensor, name)

        def counted(tensor, *args, method=method, name=name, **kwargs):
            if guard:
                seen.append(name)
            return method(tensor, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)

    def enter(*_):
        if not guard:
            guard.append(Guard())
            guard[0].__enter__()

    def leave(*_):
        if guard:
            mode = guard.pop()
            mode.__exit__(None, None, None)
            seen.extend(mode.seen)

    def watch(model):
        layers = model.get_decoder().layers
        layers[0].register_forward_pre_hook(enter)
        layers[-1].register_forward_hook(leave)
        return seen

    yield watch
    leave()


def model_and_batch():
    model, batch = FAMILY.model(), FAMILY.batch(["long", "short", "text"])
    batch.pop("position_ids")
    return model, batch


def test_the_guard_sees_what_waits(guarded):
    model, batch = model_and_batch()
    seen = guarded(model)
    layer = model.get_decoder().layers[1]
    for wait in (
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: (x > 0).nonzero(),
        lambda x: bool(x.any()),
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: x.sum().__int__(),
    ):
        seen.clear()
        hook = layer.register_forward_pre_hook(lambda m, args, wait=wait: (wait(args[0]), None)[1])
        with torch.no_grad():
            model(**batch)
        hook.remove()
        assert seen
    seen.clear()
    with torch.no_grad():
        model(**batch)
    assert not seen  # the stock model


@pytest.mark.parametrize("row", MATRIX, ids=str)
def test_prefill_and_decode(guarded, row):
    if row.name in COUNTED:
        pytest.skip("how many rows run is decided by their values")
    model, batch = model_and_batch()
    with torch.no_grad(), vtskip.attach(model, row.spec):
        seen = guarded(model)
        for kinds in (["long", "short", "text"], ["long", "long"]):  # packed and not
            batch = FAMILY.batch(kinds)
            mask, cache = batch["attention_mask"], DynamicCache(config=model.config)
            model(**batch, past_key_values=cache, logits_to_keep=1)
            for _ in range(2):
                mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
                step = dict(input_ids=mask[:, :1] * 7, position_ids=mask.sum(1, keepdim=True) - 1)
                model(**step, attention_mask=mask, past_key_values=cache)
    assert not seen


@pytest.mark.parametrize("row", MATRIX, ids=str)
def test_training_step(guarded, row):
    if row.name in COUNTED - RANKED:
        pytest.skip("how many rows run is decided by their values")
    model, batch = model_and_batch()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with vtskip.attach(model.train(), row.spec):
        seen = guarded(model)
        model(**batch, labels=labels, use_cache=False).loss.backward()
    assert not seen


@pytest.mark.parametrize("row", MATRIX, ids=str)
def test_a_frame_behind_others_on_one_cache(guarded, row):
    """The step of a stream: vision rows over a cache, its room growing, and over a window that some have left."""
    if row.name in COUNTED:
        pytest.skip("how many rows run is decided by their values")
    torch.manual_seed(0)
    model, vision = LlamaForCausalLM(LlamaConfig(**TEXT)).eval(), torch.ones(2, 60, dtype=torch.bool)
    group = torch.arange(60).expand(2, -1) // 6
    with torch.no_grad(), vtskip.attach(model, row.spec) as handle, handle.rows(vision, group):
        seen, cache = guarded(model), SkipCache()
        for frame in range(8):
            embeds = torch.randn(2, 6, TEXT["hidden_size"])
            model(inputs_embeds=embeds, past_key_values=cache, use_cache=True, logits_to_keep=1)
            if frame == 5:
                forget(model, cache, 6, 18)
    assert not seen
