"""What `generate` promises: speculative decoding equals greedy, requests do not disturb each other, text stays text."""

import pytest
import torch
import transformers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import vtskip
from tests.tiny import FAMILIES, TEXT
from tests.tiny_stream import Biased, tiny, video
from vtskip.errors import ModelError
from vtskip.runtime.attach import attached
from vtskip.streaming.session import StreamSession

SKIPS = [
    {"name": "mod", "keep": 0.3},
    {"name": "pmod"},
    {"name": "gamma_mod", "keep": 0.4, "schedule": {"kind": "constant"}},
    {"name": "fastv", "keep": 0.3},
    {"name": "shortv", "layers": [0, 1, 3]},
    {"name": "skip_ffn", "keep": 0.3},
]
METHODS = pytest.mark.parametrize("spec", SKIPS, ids=[spec["name"] for spec in SKIPS])
# FastV scores rows by the last row of the prompt's forward, which here is a guess at later text.
SPECULATIVE = pytest.mark.parametrize("spec", [s for s in SKIPS if s["name"] != "fastv"], ids=lambda s: s["name"])
CUT = dict(do_sample=False, max_new_tokens=12, min_new_tokens=12)


def repeating(name: str) -> dict[str, torch.Tensor]:
    """An image and text that says the same thing twice, so that looking up the prompt finds something."""
    batch = FAMILIES[name].batch(["short"])
    batch.pop("position_ids", None)
    phrase = torch.tensor([[21, 22, 23, 24] * 3])
    batch["input_ids"] = torch.cat([batch["input_ids"], phrase], 1)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    if "mm_token_type_ids" in batch:
        batch["mm_token_type_ids"] = torch.nn.functional.pad(batch["mm_token_type_ids"], (0, phrase.shape[1]))
    return batch


@SPECULATIVE
@pytest.mark.parametrize("name", ["llava-llama", "qwen2_5_vl"])
def test_prompt_lookup_equals_greedy(spec, name):
    model, batch = FAMILIES[name].model(), repeating(name)
    with vtskip.attach(model, spec) as handle:
        greedy = model.generate(**batch, **CUT)
        handle.reset()
        looked_up = model.generate(**batch, **CUT, prompt_lookup_num_tokens=3)
        assert torch.equal(looked_up, greedy)
        assert handle.report().forwards > 0
        assert handle.report().layers[0].rows > greedy.shape[1]  # candidates were tried, and some thrown away


@SPECULATIVE
def test_assisted_generation_equals_greedy(spec):
    """A text model with rows given by hand, helped by a small one; both may skip."""
    config = LlamaConfig(**TEXT)
    torch.manual_seed(0)
    model, helper = (LlamaForCausalLM(config).double().eval() for _ in range(2))
    for parameter in [*model.parameters(), *helper.parameters()]:
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    for m in (model, helper):
        m.generation_config.pad_token_id = 0
    ids = torch.arange(3, 43)[None]
    with vtskip.attach(model, spec) as handle, handle.rows((ids > 5) & (ids < 30)):
        inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids), **CUT)
        greedy = model.generate(**inputs)
        assert torch.equal(model.generate(**inputs, assistant_model=helper), greedy)
        with vtskip.attach(helper, "random"):
            assert torch.equal(model.generate(**inputs, assistant_model=helper), greedy)


@METHODS
def test_text_only_generation_is_the_stock_models(spec):
    model, batch = FAMILIES["llava-llama"].model(), FAMILIES["llava-llama"].batch(["text", "text"])
    batch.pop("position_ids")
    expected = model.generate(**batch, **CUT)
    with vtskip.attach(model, spec):
        assert torch.equal(model.generate(**batch, **CUT), expected)


@METHODS
def test_two_requests_in_turn_on_one_model_equal_each_alone(spec):
    """Two caches, one step of each in turn: nothing of a request stays on the model."""
    model = FAMILIES["llava-llama"].model()

    def steps(kind):
        batch, cache = FAMILIES["llava-llama"].batch([kind]), DynamicCache(config=model.config)
        batch.pop("position_ids")
        token = None
        for _ in range(6):
            with torch.no_grad():
                inputs = batch if token is None else {"input_ids": token}
                out = model(**inputs, past_key_values=cache).logits[:, -1]
            token = out.argmax(-1, keepdim=True)
            yield out

    with vtskip.attach(model, spec):
        alone = [torch.cat(list(steps(kind))) for kind in ("long", "short")]
        pairs = list(zip(steps("long"), steps("short")))
    for mine, together in zip(alone, zip(*pairs)):
        assert torch.equal(torch.cat(together), mine)


def test_two_streams_in_turn_on_one_model_equal_each_alone():
    model, template = tiny()
    vtskip.attach(model, {"name": "mod", "keep": 0.4})

    def session(seed):
        live = StreamSession(Biased(model), template, max_new_tokens=4, threshold=0.6)
        for k, frame in enumerate(video(6, seed)):
            yield [(e.time, e.text) for e in live.push(frame.numpy(), k / 2)]

    alone = [list(session(seed)) for seed in (0, 1)]
    assert any(events for stream in alone for events in stream) and alone[0] != alone[1]
    together = list(zip(session(0), session(1)))
    assert [list(stream) for stream in zip(*together)] == alone
    assert attached(model).report().forwards > 0


@pytest.mark.parametrize("name", ["llava-llama", "qwen2_5_vl", "smolvlm", "internvl", "qwen3_vl"])
def test_a_prefill_in_chunks_is_exact_or_refused(name):
    """A chunk's part of an image is no image: the rows that a method keeps of it would be others."""
    if not hasattr(transformers.generation.utils, "_slice_mm_encoder_output"):
        pytest.skip("this transformers encodes images of every chunk again")
    model, batch = FAMILIES[name].model(), FAMILIES[name].batch(["long", "short"])
    batch.pop("position_ids", None)
    for spec in ("dense", {"name": "shortv", "layers": [0, 1, 3]}):
        with vtskip.attach(model, spec):
            expected = model.generate(**batch, **CUT)
            assert torch.equal(model.generate(**batch, **CUT, prefill_chunk_size=7), expected)
    for spec in ({"name": "mod", "keep": 0.3}, {"name": "skip_ffn", "keep": 0.3}):
        with vtskip.attach(model, spec), pytest.raises(ModelError, match="prefill_chunk_size cuts images"):
            model.generate(**batch, **CUT, prefill_chunk_size=7)
