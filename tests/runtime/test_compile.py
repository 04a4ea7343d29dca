"""torch.compile of the decoder of an attached model: one graph, the same results, few graphs for many inputs."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import CompileConfig, LlamaConfig, LlamaForCausalLM

import vtskip
from tests.methods_matrix import MATRIX
from tests.tiny import FAMILIES, TEXT
from vtskip.errors import ConfigError, ModelError
from vtskip.kernels import causal_blocks
from vtskip.plan import MOVABLE, RowMap, RowSet, rows_to_keep, rows_to_keep_of

EXACT = 1e-12
LENGTH, FRAME = 48, 4
SEAMS = [
    pytest.param({"name": "mod", "keep": 0.3, "schedule": {"kind": "list", "layers": [1]}}, id="block"),
    pytest.param({"name": "skip_ffn", "keep": 0.3}, id="branch"),
    pytest.param({"name": "shortv", "layers": [0]}, id="query"),
    pytest.param([{"name": "mod", "keep": 0.6}, {"name": "skip_ffn", "keep": 0.4}], id="composed"),
]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**TEXT, "num_hidden_layers": 2})).double().eval()


@pytest.fixture
def compiled(model):
    """The decoder under ``compiled(backend)``, which returns the counter of its graphs; the stock call afterwards."""

    def switch(backend):
        counter = CompileCounterWithBackend(backend)
        model.get_decoder().compile(backend=counter, fullgraph=True, dynamic=False)
        return counter

    torch._dynamo.reset()
    yield switch
    model.get_decoder()._compiled_call_impl = None
    torch._dynamo.reset()


def inputs(frames, batch=2):
    """``frames`` frames in the first sample, one less in the others; always ``LENGTH`` rows."""
    ids = torch.randint(3, 90, (batch, LENGTH), generator=torch.Generator().manual_seed(frames))
    vision, group = torch.zeros(batch, LENGTH, dtype=torch.bool), torch.zeros(batch, LENGTH, dtype=torch.long)
    for b in range(batch):
        n = FRAME * (frames - (b > 0))
        vision[b, 3 : 3 + n] = True
        group[b, 3 : 3 + n] = torch.arange(n) // FRAME
    return ids, vision, group


def run(model, handle, frames, batch=2):
    ids, vision, group = inputs(frames, batch)
    with handle.rows(vision, group.cummax(1).values):
        return model(ids, use_cache=False).logits


@pytest.mark.parametrize("spec", SEAMS)
def test_one_graph_with_the_same_results_and_report(model, compiled, spec):
    with torch.no_grad(), vtskip.attach(model, spec) as handle:
        expected = run(model, handle, 5)
    with torch.no_grad(), vtskip.attach(model, spec, lossless=False) as handle:  # graphs run padded rows
        run(model, handle, 5)
        report = handle.report()
        counter = compiled("aot_eager")
        handle.reset()
        for _ in range(2):
            assert (run(model, handle, 5) - expected).abs().max() <= EXACT
            assert handle.report().as_dict() == report.as_dict()
            handle.reset()
    assert counter.frame_count == 1


@pytest.mark.parametrize("spec", [{"name": "dense"}, SEAMS[0].values[0]], ids=["dense", "block"])
def test_the_lossless_savings_leave_one_graph(model, compiled, spec, monkeypatch):
    """Prompts of one length that could run their attention in blocks: graphs are not split for it."""
    monkeypatch.setattr(causal_blocks, "BLOCK", 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with torch.no_grad(), vtskip.attach(model, spec) as handle:
        expected = run(model, handle, 5)
        counter = compiled("eager")
        for _ in range(2):
            assert (run(model, handle, 5) - expected).abs().max() <= EXACT
    assert counter.frame_count == 1


@pytest.mark.slow
@pytest.mark.parametrize("spec", [*SEAMS, pytest.param({"name": "pmod"}, id="gains")])
def test_gradients_of_a_compiled_decoder(model, compiled, spec):
    def gradients(handle):
        model.zero_grad()
        run(model, handle, 5).square().mean().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    with vtskip.attach(model, spec) as handle:
        expected = gradients(handle)
        counter = compiled("aot_eager")
        ours = gradients(handle)
    assert counter.frame_count == 1 and ours.keys() == expected.keys()
    for name, gradient in ours.items():
        assert (gradient - expected[name]).abs().max() <= 1e-9, name  # RMSNorm's float32 rounding
    assert any("router" in name for name in ours) or spec["name"] in ("skip_ffn", "shortv")


def test_many_numbers_of_images_share_the_graphs_of_a_bucket(model, compiled):
    """Nine numbers of frames, two buckets of 24 vision rows."""
    spec = SEAMS[0].values[0]
    with torch.no_grad(), vtskip.attach(model, spec) as handle:
        expected = {n: run(model, handle, n) for n in range(2, 11)}
    with torch.no_grad(), vtskip.attach(model, spec, bucket=24) as handle:
        counter = compiled("eager")
        bounds = set()
        for n, logits in expected.items():
            assert (run(model, handle, n) - logits).abs().max() <= EXACT
            exact = handle.last_rows
            bounds.add((exact.bucketed(24).sizes, exact.bucketed(24).text_counts))
            assert exact.sizes == ((FRAME,) * n, (FRAME,) * (n - 1))
    assert counter.frame_count <= len(bounds) < 5 < len(expected)


@pytest.mark.slow
@pytest.mark.parametrize("spec", SEAMS)
def test_every_seam_shares_graphs(model, compiled, spec):
    with torch.no_grad(), vtskip.attach(model, spec) as handle:
        expected = {n: run(model, handle, n) for n in range(2, 7)}
    with torch.no_grad(), vtskip.attach(model, spec, bucket=24) as handle:
        counter = compiled("eager")
        for n, logits in expected.items():
            assert (run(model, handle, n) - logits).abs().max() <= EXACT
    assert counter.frame_count == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava-llama", "qwen2_5_vl"])
def test_the_decoder_of_a_multimodal_model(name):
    """The hooks that read the rows sit on its parent, outside the graph."""
    family = FAMILIES[name]
    model, batch = family.model(), family.batch(["long", "short"])
    valid = batch["attention_mask"].bool()
    torch._dynamo.reset()
    with torch.no_grad(), vtskip.attach(model, {"name": "mod", "keep": 0.3}):
        expected = model(**batch, use_cache=False).logits[valid]
        counter = CompileCounterWithBackend("aot_eager")
        model.get_decoder().compile(backend=counter, fullgraph=True)
        assert (model(**batch, use_cache=False).logits[valid] - expected).abs().max() <= EXACT
    assert counter.frame_count == 1
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace:UserWarning")  # a graph break
def test_generate_compiles_its_decode_over_a_static_cache():
    """Hugging Face compiles the whole model there; its graph breaks, and those at our hooks, change no token."""
    family = FAMILIES["llava-llama"]
    model, batch = family.model(), family.batch(["long", "short"])
    batch.pop("position_ids")
    settings = dict(max_new_tokens=5, min_new_tokens=5, do_sample=False)
    config = CompileConfig(backend="eager", mode=None, fullgraph=False)
    config._compile_all_devices = True
    torch._dynamo.reset()
    with vtskip.attach(model, {"name": "mod", "keep": 0.3}):
        expected = model.generate(**batch, **settings)
        torch._dynamo.utils.counters.clear()
        ours = model.generate(**batch, **settings, cache_implementation="static", compile_config=config)
        assert torch.equal(ours, expected) and torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch._dynamo.reset()


# ---------------------------------------------------------------- buckets without a compiler


@pytest.mark.parametrize("row", MATRIX, ids=str)
def test_fillers_change_no_result(row):
    """Every method, on samples of unequal length; those that move rows say that they cannot."""
    family = FAMILIES["llava-llama"]
    model, batch = family.model(), family.batch(["long", "short", "text"])
    valid = batch["attention_mask"].bool()
    with torch.no_grad():
        with vtskip.attach(model, row.spec) as handle:
            expected, exact = model(**batch).logits[valid], handle.report()
            planners = [layer.vtskip for layer in model.get_decoder().layers if hasattr(layer, "vtskip")]
        if any(MOVABLE in planner.needs for planner in planners):
            with pytest.raises(ModelError, match="without a bucket"):
                vtskip.attach(model, row.spec, bucket=8)
            return
        with vtskip.attach(model, row.spec, bucket=8) as handle:
            assert (model(**batch).logits[valid] - expected).abs().max() <= EXACT
            report = handle.report()
        assert [(x.groups, x.kept, x.kept_ffn) for x in report.layers] == [
            (x.groups, x.kept, x.kept_ffn) for x in exact.layers
        ]


def test_bounds_are_shared_and_hold():
    a, b = (RowMap.build(inputs(n)[1].numpy(), sizes=[[FRAME] * n, [FRAME] * (n - 1)]) for n in (4, 6))
    one, two = a.bucketed(24), b.bucketed(24)
    assert one.sizes == two.sizes == ((FRAME,) * 6,) * 2 and one.exact is a
    assert all(t <= 48 and t % 24 == 0 for t in one.text_counts)
    assert torch.equal(one.group_size, a.group_size) and torch.equal(one.group_keep(0.3), a.group_keep(0.3))
    sample = one.by_sample
    assert torch.equal(sample.group_size, a.by_sample.group_size)
    assert torch.equal(sample.group_keep(0.3, "trunc"), a.by_sample.group_keep(0.3, "trunc"))
    kept = one.text_and(a.vision & (a.offset == 0), one.kept_counts(0.25))
    assert one.is_all(one.everything) and not one.is_all(RowSet(kept.mask, one.everything.counts))
    kept.bounds = True
    assert kept.width == min(max(one.text_counts) + 6, LENGTH) and (kept.ok.sum(1) == kept.mask.sum(1)).all()
    assert torch.equal(kept.index.masked_select(kept.ok), kept.mask.nonzero()[:, 1])
    unequal = RowMap.build(inputs(4)[1].numpy(), sizes=[[10, 6], [FRAME] * 3])
    assert unequal.bucketed(24) is unequal


@pytest.mark.parametrize("rounding", ["ceil", "trunc"])
@pytest.mark.parametrize("keep", [0.14, 0.2, 0.3, 0.55, 1.0])
def test_counts_on_the_device_are_those_of_the_host(keep, rounding):
    sizes = torch.arange(200)
    expected = [rows_to_keep(keep, n, rounding) for n in sizes.tolist()]
    assert rows_to_keep_of(sizes, keep, rounding).tolist() == expected


def test_a_bucket_is_a_number_of_rows(model):
    with pytest.raises(ConfigError, match="bucket: got 0"):
        vtskip.attach(model, "mod", bucket=0)
