"""The bench's record: fields, counts, refusals, resumption (its times are not judged)."""

import functools
import json

import pytest
import torch

from tests.methods_matrix import MATRIX
from vtskip.config import load_config
from vtskip.errors import ConfigError
from vtskip.eval.bench import CONTROL, BenchConfig, cpu_peak_bytes, load, machine, markdown, run
from vtskip.eval.bench.batch import build_model, make_batch
from vtskip.eval.bench.config import Setting
from vtskip.eval.bench.masked import masked
from vtskip.eval.bench.measure import Bench
from vtskip.eval.bench.peers import why
from vtskip.eval.bench.subjects import fitted, label
from vtskip.eval.bench.tables import roofline
from vtskip.eval.journal import Journal
from vtskip.methods import get_method
from vtskip.runtime.attach import attach

SIZES = dict(hidden=32, ffn=48, layers=2, heads=2, kv_heads=1, vocab=16)
TINY = SIZES | dict(frames=2, vision_rows=20, text_rows=6)
QUICK = dict(rounds=2, train_rounds=1, decode_rows=2)


@pytest.fixture(scope="module", autouse=True)
def small_roof():
    """What the machine can do is not asked here, so a short look at it is enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "measure", functools.partial(machine.measure, size=64))
        yield


def by_name(block):
    return {row["name"]: row for row in block["methods"]}


def test_record():
    methods = [{"name": "mod", "keep": 0.2}, {"name": "shortv", "layers": [1]}, {"name": "skip_ffn"}]
    record = json.loads(json.dumps(run(BenchConfig(**TINY, **QUICK, methods=methods))))
    rows = by_name(record)
    assert list(rows)[:2] == ["dense", CONTROL] and len(rows) == 5
    mod, shortv = rows["mod(keep=0.2)"], rows["shortv(layers=[1])"]
    assert mod["kv_ratio"] == pytest.approx((26 + 6 + 4) / 52, abs=1e-4)
    assert shortv["kv_ratio"] == 1 and shortv["flops_ratio"] < 1
    for field in (
        "prefill_time_ratio",
        "train_time_ratio",
        "decode_time_ratio",
        "peak_memory_ratio",
        "train_over_flops",
    ):
        assert all(row[field] > 0 for row in rows.values())
    assert mod["prefill_over_flops"] == pytest.approx(mod["prefill_time_ratio"] / mod["flops_ratio"], rel=1e-3)
    assert mod["times_ms"]["prefill"]["p20"] <= mod["prefill_ms"] <= mod["times_ms"]["prefill"]["p80"]
    assert {"command", "versions", "machine", "noise", "config", "roof"} <= record.keys()
    assert "| `mod(keep=0.2)` |" in markdown(record) and "GFLOP/s" in roofline(record)


@pytest.fixture(scope="module")
def uneven():
    config = BenchConfig(
        **TINY,
        **QUICK,
        methods=[{"name": "mod", "keep": 0.2}, {"name": "fastv", "layer": 1}],
        masked=[{"name": "mod", "keep": 0.2}, {"name": "fastv", "layer": 1}],
        controls=["lossless", "attached", "keep_1", "downsample", "flash", "mixture_of_depth"],
        cases=[
            {
                "name": "even",
                "batch": 1,
                "checkpointing": "both",
                "controls": [],
                "masked": [],
                "methods": ["skip_ffn"],
            },
            {"name": "uneven", "batch": 3, "shortest": 0.4, "train_rounds": 0},
        ],
    )
    return run(config)


def test_cases_change_some_keys_and_have_blocks_of_their_own(uneven):
    even, other = uneven["cases"]
    assert (even["name"], even["setting"]["batch"], even["padding_share"]) == ("even", 1, 0)
    assert (other["name"], other["setting"]["batch"], other["setting"]["hidden"]) == ("uneven", 3, 32)
    assert other["padding_share"] == pytest.approx(1 - (26 + 18 + 10) / 78, abs=0.03)
    assert all("checkpointed" in row and row["checkpointed_peak_ratio"] > 0 for row in even["methods"])
    assert "**uneven**: hidden 32 x 2 layers" in markdown(uneven)


def test_controls(uneven):
    rows = by_name(uneven["cases"][1])
    lossless, plain = rows["dense, lossless savings"], rows["dense, attached without savings"]
    assert lossless["flops_ratio"] < plain["flops_ratio"] <= 1 and plain["kv_ratio"] <= 1
    fewer = next(row for name, row in rows.items() if name.startswith("downsample"))
    assert fewer["flops_ratio"] == pytest.approx(rows["mod(keep=0.2)"]["flops_ratio"], abs=0.1)
    by_masks = rows["masked mod(keep=0.2)"]
    assert by_masks["flops_ratio"] == rows["mod(keep=0.2)"]["flops_ratio"] and by_masks["decode_time_ratio"] is None


def test_training_without_padding_counts_fewer_flops():
    """No label asks padding for a prediction, so that the lossless savings reach the training step too."""
    config = BenchConfig(**TINY, batch=3, shortest=0.4, controls=["lossless"], methods=[], train_rounds=1)
    bench = Bench(config, config.settings()[0][1])
    found = bench.flops(bench.subjects[2])
    assert found["train"][0] < 1 - bench.batch(bench.subjects[0]).padding and found["prefill"][0] < found["train"][0]


def test_reasons_name_no_path_of_a_machine():
    assert why(ImportError("cannot import name 'a' from 'b' (/home/me/b.py)\nmore")) == (
        "ImportError: cannot import name 'a' from 'b'"
    )


def test_a_training_step_that_does_not_fit_is_left_out(monkeypatch):
    step = Bench.train_step

    def too_large(self, batch):
        if not self.model.is_gradient_checkpointing:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return step(self, batch)

    monkeypatch.setattr(Bench, "train_step", too_large)
    record = run(BenchConfig(**TINY, **QUICK, checkpointing="both", methods=["skip_ffn"]))
    (left,) = record["left_out"]
    assert left == {"name": "training step", "reason": "OutOfMemoryError: CUDA out of memory. Tried to allocate 9 GiB"}
    row = by_name(record)["skip_ffn"]
    assert row["train_ms"] is None and row["checkpointed_ms"] > 0 and row["checkpointed_over_flops"] > 0
    assert "Left out: training step" in markdown(record)


def test_what_cannot_run_is_left_out_with_the_reason(uneven):
    left = {out["name"]: out["reason"] for out in uneven["cases"][1]["left_out"]}
    assert "masks alone" in left["masked fastv(layer=1)"] and "masked fastv(layer=1)" not in by_name(uneven["cases"][1])
    if not torch.cuda.is_available():
        assert left["dense, flash"]
    assert left["mixture-of-depth (package)"]


@pytest.mark.parametrize("row", [r for r in MATRIX if r.spec["name"] in ("mod", "pmod", "skip_ffn")], ids=str)
def test_execution_by_masks_gives_what_skipping_gives(row):
    setting = Setting(**SIZES | {"layers": 4}, frames=2, vision_rows=16, text_rows=6, batch=3, shortest=0.5)
    model = build_model(setting, "cpu", torch.float64, 0)
    batch = make_batch(setting, setting.hidden, "cpu", torch.float64, 0)
    inputs = {"inputs_embeds": batch.embeds, "use_cache": False, **batch.inputs(slice(0, batch.length))}
    real = torch.from_numpy(batch.valid)
    with torch.no_grad(), attach(model, row.spec) as handle, handle.rows(batch.vision, batch.group):
        expected = model(**inputs).logits[real]
    with torch.no_grad(), masked(model, row.spec, batch.row_map()):
        found = model(**inputs).logits[real]
    with torch.no_grad():
        dense = model(**inputs).logits[real]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(found, dense)


def test_shape_with_few_layers_is_extrapolated_apart():
    config = load(None, ["shape=llava-1.5-7b", "layers=4", "hidden=32", "ffn=48", "heads=2", "kv_heads=2", "vocab=16"])
    small = dict(vision_rows=40, text_rows=8, batch=1, train_rounds=0, rounds=1, decode_rows=0)
    methods = [{"name": "mod", "keep": 0.5}, {"name": "shortv", "layers": [16, 20, 31]}, {"name": "fastv", "layer": 8}]
    record = run(BenchConfig.model_validate(config.model_dump(exclude_unset=True) | small | {"methods": methods}))
    rows, deep = record["methods"], record["full_depth"]
    assert (deep["layers"], deep["measured_layers"]) == (32, 4)
    names = {row["name"]: row for row in deep["rows"]}
    assert {row["name"]: row["method"] for row in rows}["shortv(layers=[16,20,31])"]["layers"] == [2, 3]
    assert {row["name"]: row["method"] for row in rows}["fastv(layer=8)"]["layer"] == 1
    assert names["mod(keep=0.5)"]["flops_ratio"] == ratio_at_all_layers(config, small, methods[0])
    assert names["dense"]["estimated_prefill_ms"] == pytest.approx(8 * by_name(record)["dense"]["prefill_ms"], rel=0.1)
    assert "not measured" in markdown(record) and all(row["train_time_ratio"] is None for row in rows)


def ratio_at_all_layers(config, small, method):
    """From a run of all layers in the full width."""
    setting = Setting.model_validate(
        config.model_dump(exclude={"kind", "threads", "dtype", "device", "cases", "seed", "kernels"})
        | small
        | {"layers": 32}
    )
    model = build_model(setting, "cpu", torch.float32, 0)
    batch = make_batch(setting, setting.hidden, "cpu", torch.float32, 0)
    with torch.no_grad(), attach(model, method) as handle, handle.rows(batch.vision, batch.group):
        model(inputs_embeds=batch.embeds, logits_to_keep=1, **batch.inputs(slice(0, batch.length)))
        return round(handle.report().flops_ratio, 4)


def test_a_bench_that_was_killed_goes_on(tmp_path, monkeypatch):
    config = BenchConfig(
        **TINY, rounds=3, train_rounds=0, decode_rows=0, methods=["skip_ffn"], controls=["mixture_of_depth"]
    )
    added, add = [], Journal.add

    def dies(self, lines):
        add(self, lines)
        added.extend(lines)
        if len(added) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", dies)
    with pytest.raises(KeyboardInterrupt):
        run(config, journal=tmp_path)
    monkeypatch.setattr(Journal, "add", add)
    said = []
    record = run(config, said.append, tmp_path)
    assert [text for text in said if "round" in text] == ["prefill and decode, round 3 of 3"]
    times = [line["values"]["skip_ffn"]["prefill"] * 1000 for line in added]
    assert by_name(record)["skip_ffn"]["times_ms"]["prefill"]["p20"] <= max(times)
    said.clear()
    again = run(config, said.append, tmp_path)  # killed after the last round: nothing is measured anew
    assert not [text for text in said if "round" in text] and again["left_out"] == record["left_out"]
    said.clear()
    run(config.model_copy(update={"seed": 1}), said.append, tmp_path)
    assert sum("round" in text for text in said) == 3  # another bench's rounds are not taken


def test_unknown_keys_and_values_are_named(tmp_path):
    path = tmp_path / "bench.yaml"
    path.write_text("methods: [{name: shortw}]\n")
    with pytest.raises(ConfigError, match=r"bench.yaml.*did you mean 'shortv'"):
        load_config(BenchConfig, path)
    path.write_text("cases: [{name: a, batchs: 2}]\n")
    with pytest.raises(ConfigError, match=r"bench.yaml.*did you mean 'batch'"):
        load(path)
    with pytest.raises(ConfigError, match="did you mean 'llava-next-7b'"):
        load(None, ["shape=llava-nxt-7b"])
    path.write_text("kind: bank\n")
    with pytest.raises(ConfigError, match="accepted: bench, bench_stream"):
        load(path)
    path.write_text("heads: 7\n")
    with pytest.raises(ConfigError, match="must divide"):
        load(path)


def test_quick_lowers_rounds_of_every_case():
    config = BenchConfig(rounds=9, cases=[{"name": "a", "rounds": 7}, {"name": "b", "decode_rows": 2}]).quick()
    assert [(s.rounds, s.train_rounds, s.decode_rows) for _, s in config.settings()] == [(2, 1, 4), (2, 1, 2)]


def test_every_method_of_the_defaults_is_one():
    assert [get_method(spec).name for spec in BenchConfig().methods] == ["mod", "pmod", "skip_ffn", "fastv"]


def test_peak_is_what_is_held_at_once():
    def work():
        a = torch.zeros(1000)
        del a
        b = torch.zeros(2000), torch.zeros(500)
        return b

    assert 10000 <= cpu_peak_bytes(work) <= 10200


def test_several_methods_are_named_and_fitted_one_by_one():
    parts = [{"name": "mod", "keep": 0.2}, "fastv", {"name": "shortv", "layers": [31, 30, 8]}]
    assert (
        label(parts)
        == label({"name": "compose", "methods": parts})
        == "mod(keep=0.2) + fastv + shortv(layers=[31,30,8])"
    )
    setting = Setting(shape="llava-1.5-7b", layers=8)
    found = [{"name": "mod", "keep": 0.2}, "fastv", {"name": "shortv", "layers": [2, 7]}]
    assert fitted(setting, parts) == found
    assert fitted(setting, {"name": "compose", "methods": parts})["methods"] == found
