"""The shipped presets are the papers' settings, and ``vtskip methods`` lists them with what they cost."""

import json
from pathlib import Path

import pytest

from tests.fixtures_stream import run_cli
from tests.test_cost import LLAVA_7B, LLAVA_13B, PRESETS, preset
from vtskip.methods import METHODS, get_method

SHORTV = {  # frozen layers of the paper's table
    "llava_1.5_7b": (LLAVA_7B, 19, {0, 2, 3, 12, *range(17, 32)}),
    "llava_1.5_13b": (LLAVA_13B, 24, {0, 1, 2, 17, *range(20, 40)}),
    "llava_next_7b": (LLAVA_7B, 19, {0, 2, 12, 15, *range(17, 32)}),
    "llava_next_13b": (LLAVA_13B, 24, {1, 2, 17, 18, *range(20, 40)}),
}
ROUTED = {  # of VideoLLM-MoD's strategies, 32 layers
    "videollm_mod": set(range(1, 32, 2)),
    "videollm_mod_all": set(range(32)),
    "videollm_mod_deep": set(range(3, 32, 2)),
    "videollm_mod_deep_all": set(range(2, 32)),
}


def routed(method, shape) -> set[int]:
    return {i for i, planner in enumerate(method.planners(shape)) if planner is not None}


@pytest.mark.parametrize("model", SHORTV)
def test_shortv_lists(model):
    shape, count, frozen = SHORTV[model]
    method = get_method(preset(f"shortv_{model}"))
    assert len(method.layers) == count and method.layers[0] == shape.layers - 1  # its contribution is exactly 0
    assert routed(method, shape) == frozen


@pytest.mark.parametrize("name", ROUTED)
def test_videollm_mod_strategies(name):
    method = get_method(preset(name))
    assert (method.keep, method.combine, method.always_keep) == (0.2, "output", "none")
    assert routed(method, LLAVA_7B) == ROUTED[name]


@pytest.mark.parametrize("model", ["llava_1.5_7b", "llava_next_7b"])
def test_pmod_ratios(model):
    """The published table: 8 dense layers, the decay, the floor; ``last: 31`` is the same in 32 layers only."""
    decay = "8445 8061 7645 7202 6737 6253 5757 5253 4747 4243 3747 3263 2798 2355 1939 1555"
    schedule = get_method(preset(f"pmod_{model}")).schedule
    ratios = schedule.resolve(32, 1.0)
    assert ratios[:8] == [None] * 8 and ratios[24:] == [0.15] * 8
    assert ratios[8:24] == pytest.approx([int(r) / 1e4 for r in decay.split()], abs=5e-5)
    published = schedule.model_copy(update={"last": 31})
    assert published.resolve(32, 1.0) == ratios and published.resolve(40, 1.0) != schedule.resolve(40, 1.0)


@pytest.mark.parametrize(("name", "layer", "keep"), [("k2_r50", 2, 0.5), ("k3_r50", 3, 0.5), ("k3_r75", 3, 0.25)])
def test_fastv(name, layer, keep):
    method = get_method(preset(f"fastv_{name}"))
    assert (method.layer, method.keep) == (layer, keep)


@pytest.mark.parametrize(("name", "keep"), [("", 0.5), ("_34", 0.66)])
def test_gamma_mod(name, keep):
    method = get_method(preset(f"gamma_mod_llava_hr_7b{name}"))
    assert (method.keep, method.threshold, method.decode_threshold, method.aux_weight) == (keep, 0.005, 0.5, 0.01)
    assert routed(method, LLAVA_7B) == set(range(3, 31))


def test_layers_of_mindskip_and_the_depth_baselines():
    assert routed(get_method(preset("mindskip_llama_3_8b")), LLAVA_7B) == set(range(15, 31))
    assert routed(get_method(preset("vtw_llava_1.5_7b")), LLAVA_7B) == set(range(16, 32))
    assert routed(get_method(preset("vtw_llava_1.5_13b")), LLAVA_13B) == set(range(20, 40))
    assert routed(get_method(preset("layer_skip")), LLAVA_7B) == set(range(1, 32, 2))


def test_every_preset_is_listed_with_a_path_that_attaches():
    rows = json.loads(run_cli("methods", "--json").out)
    listed = {(row["name"], entry["path"]) for row in rows for entry in row["presets"]}
    assert {Path(path).resolve() for _, path in listed} == set(PRESETS.glob("*.yaml"))
    assert all(get_method(path).name == name for name, path in listed)
    assert all(entry["about"] and "# " not in entry["about"] for row in rows for entry in row["presets"])


def test_paths_hold_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = json.loads(run_cli("methods", "--json").out)
    assert all(Path(entry["path"]).is_file() for row in rows for entry in row["presets"])


def test_every_method_from_a_paper_states_its_published_cost():
    rows = {row["name"]: row for row in json.loads(run_cli("methods", "--json").out)}
    for name in ("mod", "pmod", "gamma_mod", "mindskip", "shortv", "fastv", "skip_ffn", "skip_vision"):
        assert rows[name]["published"] == METHODS[name].published != ""
        assert any(unit in rows[name]["published"] for unit in ("%", " x "))
    assert rows["dense"]["published"] is None


def test_tables_fit_100_columns():
    out = run_cli("methods", columns=100).out
    assert max(map(len, out.splitlines())) <= 100 and "…" not in out
    text = " ".join(out.split())
    assert "configs/methods" in text and "trained" in text and "published cost" in text
    for path in PRESETS.glob("*.yaml"):
        assert path.name in out
