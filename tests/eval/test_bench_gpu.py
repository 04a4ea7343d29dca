"""The script for a GPU in its CPU form: every case and kernel of the shipped file, in tiny sizes."""

import functools
from pathlib import Path

import pytest
import torch

import vtskip.eval.bench as bench
from vtskip.config import parse, read_yaml
from vtskip.errors import ConfigError
from vtskip.eval.bench import machine
from vtskip.eval.bench.config import KernelCase
from vtskip.eval.bench.kernels import compare, packed_rows
from vtskip.eval.bench.picture import picture
from vtskip.eval.bench.stream import StreamBench
from vtskip.eval.bench.stream_config import StreamConfig
from vtskip.eval.bench.tables import roofline

FILE = Path(__file__).resolve().parents[2] / "configs/bench/gpu.yaml"
NARROW = dict(hidden=32, ffn=48, heads=2, kv_heads=1, vocab=16, vision_rows=24, text_rows=6, rounds=1, decode_rows=1)


@pytest.fixture(scope="module")
def small_roof():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "measure", functools.partial(machine.measure, size=64))
        yield


@pytest.fixture(scope="module")
def record(small_roof):
    values = read_yaml(FILE)
    for case in values["cases"]:
        case |= NARROW | {"frames": 2, "layers": 4}
        case["train_rounds"] = min(1, case.get("train_rounds", 1))
        case["batch"] = min(2, case["batch"])
    for kernel in values["kernels"]:
        runs = min(4, kernel.get("runs", 1))
        asked = {"queries": 2 * runs, "runs": runs} if "queries" in kernel else {}
        kernel |= {"rows": 40, "heads": 2, "kv_heads": 1, "head_dim": 16, "rounds": 1} | asked
    config = parse(bench.BenchConfig, values | {"device": "cpu", "dtype": "float32"}, str(FILE))
    return bench.run(config)


def test_every_case_has_every_row(record):
    asked = [len(c["methods"]) + len(c.get("masked", [])) for c in read_yaml(FILE)["cases"]]
    for case, methods in zip(record["cases"], asked):
        names = [row["name"] for row in case["methods"]]
        assert len(names) + len(case["left_out"]) == 2 + 3 + methods
        assert len(case["full_depth"]["rows"]) < len(names)


def test_training_is_measured_with_and_without_checkpointing(record):
    first, next_, video, qwen = (case["methods"][-1] for case in record["cases"])
    assert first["checkpointed_ms"] and video["checkpointed_ms"] and video["train_ms"]
    assert next_["train_ms"] and next_["checkpointed_ms"] is None and qwen["train_ms"] is None
    assert set(first["peak_bytes"]) == {"prefill", "train", "checkpointed"}


def test_frozen_weights_get_no_gradient(record):
    """With ``trained: inputs`` the step holds no gradients of the weights."""
    peaks = [next(r for r in record["cases"][i]["methods"] if r["name"] == "dense")["peak_bytes"] for i in (0, 2)]
    assert peaks[1]["train"] < peaks[0]["train"] / 1.5


def test_kernels_agree_or_say_why_they_cannot(record):
    equal, _, few, runs = record["kernels"]
    for case in (equal, few, runs):
        found = {row["kernel"]: row for row in case["kernels"]}
        assert set(found) == {"torch flash", "masked sdpa", "flash", "torch", "triton", "sdpa"}
        against = found[case["against"]]
        for row in found.values():
            if "reason" not in row:
                assert row["forward_speed"] == pytest.approx(against["forward_ms"] / row["forward_ms"], abs=1e-4)
                assert row["both_speed"] == pytest.approx(against["both_ms"] / row["both_ms"], abs=1e-4)
        assert found["sdpa"]["error"] < 1e-5 and found["sdpa"]["both_ms"] > 0
        assert all("reason" in row or row["error"] < 1e-5 for row in found.values())
    assert all(row["reason"] for row in few["kernels"] if row["kernel"] in ("torch flash", "flash", "torch"))
    assert (equal["against"], few["against"], runs["against"]) == ("torch flash", "masked sdpa", "masked sdpa")


def test_a_batch_is_one_call_of_the_kernels_compared_with(monkeypatch):
    """A loop over samples would leave a GPU half empty, and flatter ours."""
    calls, attend = [], torch.nn.functional.scaled_dot_product_attention
    counted = lambda q, *args, **options: (calls.append(q.shape[0]), attend(q, *args, **options))[1]  # noqa: E731
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    case = KernelCase(name="a", heads=2, kv_heads=2, head_dim=8, batch=3, rows=6, backward=False, rounds=1)
    found = {row["kernel"]: row for row in compare(case, "cpu", torch.float32)["kernels"]}
    assert set(calls) == {3} and found["torch flash"]["error"] < 1e-5 and found["masked sdpa"]["error"] < 1e-5


def test_the_stream_of_a_gpu(small_roof):
    """The other script for a GPU: every cell and method of its file, with steps that are replayed by a plain call."""
    values = read_yaml(FILE.with_name("stream_gpu.yaml"))
    values |= {name: NARROW[name] for name in ("hidden", "ffn", "heads", "kv_heads", "vocab")}
    values |= {"layers": 2, "frame_rows": 3, "context": 16, "contexts": [8, 16, 24], "rounds": 1}
    values["bounded"] |= {"window_frames": 8, "frames": [16, 24], "fed": 4, "rounds": 1}
    config = parse(StreamConfig, values | {"device": "cpu", "dtype": "float32"}, "stream_gpu.yaml")
    record = bench.run(config)
    stream = StreamBench(config, torch.float32)
    for cell in record["cells"]:
        stream.graphs(cell, lambda text: None, lambda step: step)
        assert [row["graph"]["median"] >= 0 for row in cell["rows"]] == [True] * (1 + len(config.methods))
        assert all(set(row["floor_ms"]) == {"weights", "kv", "flops"} and row["over_floor"] > 0 for row in cell["rows"])
    assert [(c["context"], c["frames_per_step"], c["streams"]) for c in record["cells"]] == config.cells()
    assert len(record["bounded"]) == 1 and "graph ms/frame" in bench.markdown(record)


def test_memory_with_weights(record):
    case = record["cases"][2]
    weights, rows = case["weight_bytes"], {row["name"]: row for row in case["methods"]}
    for row in rows.values():
        for phase, ratio in row["with_weights_ratio"].items():
            own, dense = (weights + r["peak_bytes"][phase] for r in (row, rows["dense"]))
            assert ratio == pytest.approx(own / dense, abs=1e-4)


def test_rows_of_a_kernel_case():
    rows = packed_rows(KernelCase(name="a", batch=2, rows=12, queries=4, runs=2), "cpu")
    assert rows.lens_q == (4, 4) and rows.q_pos.tolist() == [4, 5, 10, 11] * 2
    assert [tuple(s) for s in rows.segments][:2] == [(0, 2, 0, 6), (2, 4, 0, 12)]
    forward = compare(
        KernelCase(name="b", heads=2, kv_heads=2, head_dim=8, rows=6, backward=False, rounds=1), "cpu", torch.float32
    )
    assert "both_ms" not in next(row for row in forward["kernels"] if row["kernel"] == "sdpa")


def test_tables_and_picture(record):
    text = bench.markdown(record)
    assert "**LLaVA-1.5-7B**" in text and "| equal rows, 8 x 634, against torch flash | `sdpa` |" in text
    assert "share of matrix" in roofline(record)
    png = picture(record)
    assert png.startswith(b"\x89PNG") and len(png) > 20000
    with pytest.raises(ConfigError, match="has tables"):
        picture({"kind": "bench_stream"})
