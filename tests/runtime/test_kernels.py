"""Models run by the kernels of ``vtskip.kernels`` (Triton in its interpreter) give what they give by plain torch."""

import os

import pytest
import torch
from transformers import DynamicCache

import vtskip
from tests import flash_standin
from tests.tiny import FAMILIES, IMAGE_ID
from vtskip.errors import ConfigError
from vtskip.kernels import choice, dispatch

SPECS = {
    "mod": {"name": "mod", "keep": 0.4},
    "mod-delta": {"name": "mod", "keep": 0.4, "combine": "delta"},
    "shortv": {"name": "shortv", "layers": [1, 2]},
    "skip_ffn": {"name": "skip_ffn", "keep": 0.3},
}


@pytest.fixture
def triton(monkeypatch):
    """``with triton():`` every operation runs in Triton; calls are counted."""
    pytest.importorskip("triton")
    assert torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
    monkeypatch.delenv(choice.VARIABLE, raising=False)
    return lambda: choice.use("triton")


@pytest.fixture
def calls(monkeypatch):
    """How often each operation was asked for."""
    counts = {}

    def counted(name, function):
        def call(*args, **kwargs):
            counts[name] = counts.get(name, 0) + 1
            return function(*args, **kwargs)

        return call

    for name in ("gather_norm", "scatter_update", "gather_rows", "decode_attention"):
        short = name.removesuffix("_attention")
        monkeypatch.setattr(dispatch, name, counted(short, getattr(dispatch, name)))
    monkeypatch.setattr("vtskip.runtime.packed.by_kernel", counted("attention", dispatch.packed_attention))
    return counts


def model_of(name):
    return FAMILIES[name].model(torch.float32)


def trained(model, batch, spec):
    """Logits of content rows, and every gradient."""
    model.zero_grad()
    with vtskip.attach(model, spec):
        logits = model(**batch).logits[batch["attention_mask"].bool()]
        logits.square().mean().backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), grads


CASES = [("mod", "llava-llama"), ("shortv", "llava-llama")]
SLOW = [("mod-delta", "llava-qwen2"), ("skip_ffn", "llava-llama"), ("mod", "qwen3_vl"), ("shortv", "llava-mistral")]


@pytest.mark.parametrize(("method", "name"), [*CASES, *(pytest.param(*c, marks=pytest.mark.slow) for c in SLOW)])
def test_logits_and_gradients(name, method, triton, calls):
    spec = SPECS[method]
    kinds = ["long"] if name == "llava-mistral" else ["short", "text"]  # longer than its window
    model, batch = model_of(name), FAMILIES[name].batch(kinds, dtype=torch.float32)
    expected, grads = trained(model, batch, spec)
    assert "gather_norm" not in calls
    with triton():
        ours, ours_grads = trained(model, batch, spec)
    assert (ours - expected).abs().max() <= 2e-5
    assert ours_grads.keys() == grads.keys()
    for key, grad in grads.items():
        assert (ours_grads[key] - grad).abs().max() <= 2e-5 * max(1.0, float(grad.abs().max())), key
    assert calls["attention"] >= 2 and calls["scatter_update"] >= 2 and calls["gather_rows"] >= 2


def test_cached_steps(triton, calls):
    """Prefill, a chunk with another image over its cache, and two decoded tokens: positions, not masks, over a cache."""
    family, model = FAMILIES["llava-llama"], model_of("llava-llama")
    batch = family.batch(["long"], dtype=torch.float32)
    ids, pixels, cut = batch["input_ids"], batch["pixel_values"], family.starts("long")[1]

    def steps():
        cache, out = DynamicCache(), []
        for part, image in ((ids[:, :cut], pixels[:1]), (ids[:, cut:], pixels[1:]), (ids[:, :1], None)):
            images = {} if image is None else {"pixel_values": image}
            out.append(model(input_ids=part, past_key_values=cache, **images).logits)
        return torch.cat(out, 1)

    with torch.no_grad(), vtskip.attach(model, SPECS["mod"]):
        expected = steps()
        before = dict(calls)
        with triton():
            ours = steps()
    assert (ours - expected).abs().max() <= 2e-5
    assert before.get("attention", 0) == 0 and calls["attention"] >= 4


@pytest.mark.parametrize("name", ["llava-llama", pytest.param("llava-mistral", marks=pytest.mark.slow)])
def test_decoding_a_batch(name, triton, calls):
    """Samples of different lengths, left padding, a window: the cache's slots differ, and K and V are read in place."""
    family, model = FAMILIES[name], model_of(name)
    batch = family.batch(["long", "short"], dtype=torch.float32)
    options = {"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False, "output_logits": True}

    def logits():
        return torch.stack(model.generate(**batch, **options, return_dict_in_generate=True).logits)

    with torch.no_grad(), vtskip.attach(model, SPECS["mod"]):
        expected = logits()
        assert "decode" not in calls
        with choice.use("decode=triton"):
            ours = logits()
    assert (ours - expected).abs().max() <= 2e-5 and calls["decode"] == 2  # the layers that skip


def test_what_cannot_run_is_said(triton):
    family = FAMILIES["llava-llama"]
    model, batch = family.model(torch.float64), family.batch(["long"])
    with (
        vtskip.attach(model, SPECS["mod"]),
        triton(),
        pytest.raises(ConfigError, match="triton cannot compute in float64"),
    ):
        model(**batch)


def test_text_runs_read_by_flash_in_segments(monkeypatch):
    """ShortV's text before and after an image: two calls of a kernel that knows no positions (a stand-in of its semantics)."""
    spans = []

    def standin(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, window, softcap):
        spans.append((max_q, max_k))
        return flash_standin.flash_attn_varlen_func(q, k, v, cu_q, cu_k, max_q, max_k, softmax_scale=scale, causal=True)

    monkeypatch.setattr("vtskip.kernels.flash.flash_varlen", standin)
    monkeypatch.setitem(choice.TABLE["attention"], "flash", lambda call: "" if call.order else "knows no positions")
    family, model = FAMILIES["llava-llama"], FAMILIES["llava-llama"].model()
    batch = family.batch(["short"])
    start, length = family.starts("short")[0], batch["input_ids"].shape[1]
    with torch.no_grad(), vtskip.attach(model, {"name": "shortv", "layers": [1]}):
        expected = model(**batch).logits
        with choice.use("attention=flash"):
            ours = model(**batch).logits
    image = int((batch["input_ids"] == IMAGE_ID).sum())
    assert (ours - expected).abs().max() <= family.tolerance
    assert spans == [(start, start), (length - start - image, length)]
