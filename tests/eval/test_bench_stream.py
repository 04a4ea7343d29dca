"""The bench of frame-by-frame steps: contexts, bytes, floors, the bounded stream, the captured step without a capture."""

import functools
import json

import pytest
import torch

from vtskip.eval.bench import load, machine, markdown, run
from vtskip.eval.bench.graph import captured
from vtskip.eval.bench.stream import StreamBench, repeat_rows
from vtskip.eval.bench.stream_config import Bounded, StreamConfig
from vtskip.eval.journal import Journal

TINY = dict(hidden=32, ffn=48, layers=2, heads=2, kv_heads=1, vocab=16, frame_rows=5)
METHODS = ["dense", {"name": "mod", "keep": 0.2}]
SMALL = StreamConfig(
    **TINY,
    contexts=[16, 40],
    context=16,
    frames_per_step=[1, 3],
    streams=[1, 2],
    rounds=1,
    bounded=Bounded(window_frames=16, frames=(30, 60), fed=4, rounds=1),
    methods=METHODS,
)


@pytest.fixture(scope="module", autouse=True)
def small_roof():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "measure", functools.partial(machine.measure, size=64))
        yield


@pytest.fixture(scope="module")
def record(small_roof):
    return json.loads(json.dumps(run(SMALL)))


def test_one_axis_at_a_time(record):
    cells = [(c["context"], c["frames_per_step"], c["streams"]) for c in record["cells"]]
    assert cells == [(16, 1, 1), (40, 1, 1), (16, 3, 1), (16, 1, 2)]


def test_bytes_are_those_of_the_rows_held(record):
    row_bytes = 2 * 16 * 4  # K and V of one row in one layer, one head of 16, fp32
    for cell in record["cells"]:
        stock, dense, mod = cell["rows"]
        held = cell["context"] * cell["streams"] * row_bytes
        assert stock["kv_bytes_per_step"] == dense["kv_bytes_per_step"] == 2 * 5 * held
        assert mod["kv_bytes_per_step"] == (5 + 1) * held
        assert mod["flops_per_frame"] < dense["flops_per_frame"] < stock["flops_per_frame"]


def test_floors(record):
    one, three = record["cells"][0]["rows"], record["cells"][2]["rows"]
    rate = record["roof"]["bandwidth_gb_per_second"] * 1e9
    assert one[0]["floor_ms"]["weights"] == pytest.approx(1000 * record["weight_bytes"] / rate, rel=0.3, abs=2e-4)
    assert three[0]["floor_ms"]["weights"] == pytest.approx(one[0]["floor_ms"]["weights"] / 3, abs=2e-4)
    assert all(row["over_floor"] > 0 for row in one)


def test_bounded_stream_holds_no_more_than_its_window(record):
    (row,) = record["bounded"]
    assert row["frames"] == [30, 60] and max(row["kv_bytes"]) <= 16 * (5 + 1) * 2 * 16 * 4
    assert "16 frames held" in markdown(record) and "unbounded" in markdown(record)


def test_repeated_rows_are_a_longer_stream():
    """A cache that was repeated reports the length and positions of one that was fed."""
    bench = StreamBench(SMALL, torch.float32)
    fed, again = (bench.opened("mod", METHODS[1], 8, 1, 1) for _ in range(2))
    fed.embeds = bench.pool[:1, :40]
    bench.on(fed, lambda handle: bench.step(fed))
    repeat_rows(again.cache, 2, 40)
    for one, other in zip(fed.cache.layers, again.cache.layers):
        assert one.get_seq_length() == other.get_seq_length() == 80 and one.keys.shape == other.keys.shape
        assert [len(p) // 2 for p in one.pos.tolist()] == [len(p) // 2 for p in other.pos.tolist()]
        if one.slots == 80:
            assert torch.equal(one.pos, other.pos)


@pytest.mark.parametrize("spec", [None, *METHODS], ids=str)
def test_captured_step_is_the_step(spec):
    """What is captured runs the rows of the method, and leaves the stream where it was."""
    bench = StreamBench(SMALL, torch.float64)
    stream, seen = bench.opened("a", spec, 16, 1, 1), []

    def play(handle):
        expected = bench.model(**bench.inputs(stream)).logits
        stream.cache.crop(-stream.embeds.shape[1])

        def capture(step):
            seen.append(step().logits)
            return step

        captured(bench.model, bench.inputs(stream), capture)
        assert stream.cache.get_seq_length() == 16 * 5
        torch.testing.assert_close(seen[0], expected)
        torch.testing.assert_close(bench.model(**bench.inputs(stream)).logits, expected)

    bench.on(stream, play)


def test_graphs_are_timed_or_say_why_not():
    bench = StreamBench(SMALL.model_copy(update={"contexts": [16], "bounded": None}), torch.float32)
    cell, count = bench.cell((16, 1, 1), print), []

    def capture(step):
        count.append(step())
        if len(count) == 2:
            raise RuntimeError("operation not permitted when stream is capturing")
        return lambda: None

    bench.graphs(cell, print, capture)
    stock, dense, mod = (row["graph"] for row in cell["rows"])
    assert stock["p20"] <= stock["median"] and mod["median"] >= 0
    assert dense == "not captured: RuntimeError: operation not permitted when stream is capturing"


def test_killed_bench_goes_on_with_the_next_cell(tmp_path, monkeypatch):
    add = Journal.add

    def dies(self, lines):
        add(self, lines)
        raise KeyboardInterrupt

    config = SMALL.model_copy(update={"bounded": None, "contexts": [16], "frames_per_step": [1], "streams": [1, 2]})
    monkeypatch.setattr(Journal, "add", dies)
    with pytest.raises(KeyboardInterrupt):
        run(config, journal=tmp_path)
    monkeypatch.setattr(Journal, "add", add)
    said = []
    assert len(run(config, said.append, tmp_path)["cells"]) == 2
    assert not any("1 streams" in text for text in said) and any("2 streams" in text for text in said)


def test_context_is_exact():
    bench = StreamBench(SMALL, torch.float32)
    for frames in (16, 21, 23):
        for spec in (None, METHODS[1]):
            assert bench.opened("a", spec, frames, 1, 2).cache.get_seq_length() == frames * 5


def test_configuration_of_a_stream():
    assert isinstance(load(None, ["rounds=2"], "bench_stream"), StreamConfig)
    assert load(None, [], "bench_stream").quick().rounds == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_steps_are_captured_on_a_gpu():
    """The replay computes what the step computed when it was captured."""
    sizes = {"device": "cuda", "contexts": [16], "bounded": None, "hidden": 64, "kv_heads": 2}
    bench = StreamBench(SMALL.model_copy(update=sizes), torch.float32)
    cell = bench.cell((16, 1, 1), print)
    bench.graphs(cell, print)
    assert [type(row["graph"]) for row in cell["rows"]] == [dict] * 3, [row["graph"] for row in cell["rows"]]
