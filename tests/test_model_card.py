"""The model card: what it says is what runs, and it leaves other people's text alone."""

import re
import sys

import pytest
import torch
import transformers

import vtskip
from tests.methods_matrix import MATRIX
from tests.tiny import FAMILIES
from vtskip.estimate import Prompt, prefill_report
from vtskip.model_card import BEGIN, CARD_NAME, PICTURE_NAME, kept_shares, ranges
from vtskip.runtime.attach import attached

TINY = FAMILIES["llava-llama"]


def saved(folder, spec="mod", model=None) -> str:
    model = TINY.model(torch.float32) if model is None else model
    if attached(model) is None:
        vtskip.attach(model, spec)
    vtskip.save_pretrained(model, folder)
    return (folder / CARD_NAME).read_text()


def test_card_of_a_method_that_never_ran(tmp_path):
    card = saved(tmp_path, {"name": "mod", "keep": 0.25})
    assert "VideoLLM-MoD, arXiv 2408.16730" in card and '"keep": 0.25' in card
    assert "from the cost model, for one prompt of 64 text rows and an image of 576 rows" in card
    assert "| 0, 2 | 1 | 1 | 1 |\n| 1, 3 | 0.25 | 0.25 | 0.325 |" in card  # (64 + 144) of 640 rows
    assert "| KV cache, MB | 0.2171 | 0.3277 | 0.662 |" in card  # (1 + 0.325) / 2 of 4 layers x 640 rows x 128 bytes


def test_card_of_a_method_that_ran(tmp_path):
    model = TINY.model(torch.float32)
    with vtskip.attach(model, {"name": "shortv", "layers": [1, 2, 3]}) as handle, torch.no_grad():
        model(**TINY.batch(["long"], dtype=torch.float32))
        report, card = handle.report(), saved(tmp_path, model=model)
    assert "measured; forwards since the method was attached: 1." in card
    assert "| 0 | 1 | 1 | 1 |\n| 1-3 | 0 | 0 | 1 |" in card
    assert f"| {report.flops_full / 1e9:.4g} | {report.flops_full_dense / 1e9:.4g} | {report.flops_ratio:.3f} |" in card


def test_card_after_a_reset_is_that_of_a_method_that_never_ran(tmp_path):
    model = TINY.model(torch.float32)
    with vtskip.attach(model, {"name": "mod", "keep": 0.25}) as handle, torch.no_grad():
        model(**TINY.batch(["long"], dtype=torch.float32))
        handle.reset()
        assert "| 1, 3 | 0.25 | 0.25 | 0.325 |" in saved(tmp_path, model=model)


@pytest.mark.parametrize("row", MATRIX, ids=str)
def test_every_method_has_a_card(tmp_path, row):
    """What the cost model says of the reference prompt is what a forward of that prompt does, or it says why not."""
    model = TINY.model(torch.float32)
    with vtskip.attach(model, row.spec) as handle, torch.no_grad():
        expected = prefill_report(handle)
        card = saved(tmp_path, model=model)
        assert "## Cost" in card and all(0 <= share <= 1 for c in expected.layers for share in kept_shares(c))
        if "depends on the rows" in card:
            assert row.spec["name"] in ("gamma_mod", "mindskip") or row.name == "mod+skip_vision"
            return
        vision = torch.from_numpy(Prompt().vision)
        with handle.rows(vision):
            model(input_ids=torch.full(vision.shape, 7), logits_to_keep=1, use_cache=True)
        ran = handle.report()
        assert [(c.kept, c.kept_ffn, c.cache) for c in ran.layers] == [
            (c.kept, c.kept_ffn, c.cache) for c in expected.layers
        ]
        assert (ran.flops_full, ran.flops_full_dense) == (expected.flops_full, expected.flops_full_dense)
        assert ran.kv_bytes_dense == expected.kv_bytes_dense
        assert ran.kv_bytes == expected.kv_bytes


def test_front_matter_names_a_base_of_the_hub_only(tmp_path):
    model = TINY.model(torch.float32)
    model.config._name_or_path, model.config._commit_hash = "llava-hf/llava-1.5-7b-hf", "c0ffee"
    card = saved(tmp_path / "hub", model=model)
    assert card.startswith(
        "---\nlibrary_name: vtskip\nbase_model: llava-hf/llava-1.5-7b-hf\ntags:\n- vtskip\n- mod\n---\n"
    )
    assert "`llava-hf/llava-1.5-7b-hf` at revision `c0ffee`" in card
    model.config._name_or_path = str(tmp_path / "hub")
    assert "base_model:" not in saved(tmp_path / "local", model=model)


def test_the_lines_to_load_it_run(tmp_path, monkeypatch):
    model = TINY.model(torch.float32)
    model.save_pretrained(tmp_path / "base")
    model.config._name_or_path = str(tmp_path / "base")
    lines = re.search(r"```python\n(.*?)```", saved(tmp_path / "routers", model=model), re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(lines, names)
    assert attached(names["model"]).method == attached(model).method
    assert type(names["model"]) is transformers.LlavaForConditionalGeneration


def test_text_of_others_stays_and_ours_is_exchanged(tmp_path):
    (tmp_path / CARD_NAME).write_text("---\nlibrary_name: peft\n---\n\n# An adapter\n")
    first = saved(tmp_path, "mod")
    assert first.startswith("---\nlibrary_name: peft\n---\n\n# An adapter\n\n" + BEGIN)
    (tmp_path / CARD_NAME).write_text(first + "\nThanks to all.\n")
    second = saved(tmp_path, "fastv")
    assert second.startswith("---\nlibrary_name: peft\n---\n\n# An adapter\n\n" + BEGIN)
    assert second.endswith("\nThanks to all.\n")
    assert "`fastv`" in second and "`mod`" not in second and second.count(BEGIN) == 1
    assert saved(tmp_path, "fastv") == second


def test_picture(tmp_path):
    pytest.importorskip("matplotlib")
    card = saved(tmp_path)
    assert f"]({PICTURE_NAME})" in card
    assert (tmp_path / PICTURE_NAME).read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_no_picture(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert PICTURE_NAME not in saved(tmp_path)
    assert not (tmp_path / PICTURE_NAME).exists()


def test_ranges():
    assert ranges([0, 2, 3, 4, 7]) == "0, 2-4, 7"
