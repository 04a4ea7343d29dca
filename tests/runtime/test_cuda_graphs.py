"""A decode step and a prefill of fixed counts in a CUDA graph: what the replay gives is what the eager run gave."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

import vtskip
from tests.tiny import TEXT
from vtskip.plan import RowMap

FRAMES, FRAME, LENGTH, SLOTS = 3, 8, 40, 64
SPECS = [
    pytest.param({"name": "mod", "keep": 0.4}, id="block"),
    pytest.param({"name": "skip_ffn", "keep": 0.3}, id="branch"),
    pytest.param({"name": "shortv", "layers": [0, 2]}, id="query"),
]
# Without a GPU the same steps run twice and nothing is captured: the test itself stays sound.
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]


def model_on(device):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**TEXT)).eval().to(device)


def vision():
    rows = torch.zeros(2, LENGTH, dtype=torch.bool)
    rows[:, 4 : 4 + FRAMES * FRAME] = True
    return rows


def recorded(work, device):
    """``replay() -> result`` of ``work``: captured on a GPU after it has run there, else ``work`` itself."""
    if device == "cpu":
        return work
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # kernels are compiled, what the rows' memo holds is made
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()

    def replay():
        graph.replay()
        return result

    return replay


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("spec", SPECS)
def test_prefill(spec, device):
    model, x = model_on(device), torch.randn(2, LENGTH, 32, generator=torch.Generator().manual_seed(1)).to(device)
    other = torch.randn(2, LENGTH, 32, generator=torch.Generator().manual_seed(2)).to(device)
    rows = RowMap.build(vision().numpy(), sizes=[[FRAME] * FRAMES] * 2, device=device)
    with torch.no_grad(), vtskip.attach(model, spec) as handle:

        def work():  # the decoder alone: reading the rows from the inputs is what comes before the layers
            handle.state.begin(rows)
            return model.get_decoder()(inputs_embeds=x, use_cache=False).last_hidden_state

        before = work().clone()
        replay = recorded(work, device)
        x.copy_(other)  # other values, other rows kept, as many of them
        ours = replay().clone()
        assert torch.equal(ours, work()) and not torch.equal(ours, before)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("spec", SPECS)
def test_decode_over_a_static_cache(spec, device):
    model = model_on(device)
    ids = torch.randint(3, 90, (2, LENGTH), generator=torch.Generator().manual_seed(1)).to(device)
    cache = StaticCache(config=model.config, max_cache_len=SLOTS)
    token, position = torch.tensor([[7], [8]], device=device), torch.tensor([[LENGTH], [LENGTH]], device=device)
    mask = (torch.arange(SLOTS, device=device) <= LENGTH).expand(2, 1, 1, -1).clone()
    with torch.no_grad(), vtskip.attach(model, spec) as handle:
        with handle.rows(vision()):
            model(ids, past_key_values=cache, attention_mask=torch.ones_like(ids))

        def work(cache=cache):
            step = dict(input_ids=token, position_ids=position, attention_mask=mask)
            return model(**step, past_key_values=cache).logits

        again, held = copy.deepcopy(cache), [t.clone() for t in tensors(cache)]
        expected = work(again)
        replay = recorded(work, device)
        for t, before in zip(tensors(cache), held):  # as it was after the prefill
            t.copy_(before)
        assert torch.equal(replay(), expected)
        assert all(torch.equal(a, b) for a, b in zip(tensors(cache), tensors(again)))


def tensors(cache):
    return [t for layer in cache.layers for t in vars(layer).values() if torch.is_tensor(t)]
