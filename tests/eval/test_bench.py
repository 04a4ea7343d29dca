"""The bench's record: fields, counts and refusals (its times are not judged)."""

import json

import pytest

from vtskip.config import load_config
from vtskip.errors import ConfigError
from vtskip.eval.bench import CONTROL, BenchConfig, cpu_peak_bytes, run

TINY = dict(hidden=32, ffn=48, layers=2, heads=2, kv_heads=1, vocab=16, frames=2, vision_rows=20, text_rows=6)


def test_record():
    methods = [{"name": "mod", "keep": 0.2}, {"name": "shortv", "layers": [1]}, {"name": "skip_ffn"}]
    config = BenchConfig(**TINY, rounds=2, train_rounds=1, decode_rows=2, methods=methods)
    record = json.loads(json.dumps(run(config)))
    rows = {row["name"]: row for row in record["methods"]}
    assert list(rows)[:2] == ["dense", CONTROL] and len(rows) == 5
    mod, shortv = rows["mod(keep=0.2)"], rows["shortv(layers=[1])"]
    assert mod["kv_ratio"] == pytest.approx((26 + 6 + 4) / 52, abs=1e-4)
    assert shortv["kv_ratio"] == 1 and shortv["flops_ratio"] < 1
    for field in ("prefill_time_ratio", "train_time_ratio", "decode_time_ratio", "peak_memory_ratio"):
        assert all(row[field] > 0 for row in rows.values())
    assert {"command", "versions", "machine", "noise", "config"} <= record.keys()


def test_unknown_method_in_a_config_is_named(tmp_path):
    path = tmp_path / "bench.yaml"
    path.write_text("methods: [{name: shortw}]\n")
    with pytest.raises(ConfigError, match=r"bench.yaml.*did you mean 'shortv'"):
        load_config(BenchConfig, path)


def test_peak_is_what_is_held_at_once():
    import torch

    def work():
        a = torch.zeros(1000)
        del a
        b = torch.zeros(2000), torch.zeros(500)
        return b

    assert 10000 <= cpu_peak_bytes(work) <= 10200
