"""``vtskip cost``: a published model under every method with one command, without weights."""

import json

import pytest
import torch

from tests.fixtures_stream import run_cli
from tests.tiny import FAMILIES
from vtskip._shipped import shipped


def test_a_shape_under_all_shipped_methods():
    result = run_cli("cost", "llava-1.5-7b", "--text-rows", 64, "--json")
    rows = {row["name"]: row for row in json.loads(result.out)}
    assert list(rows) == ["dense", *(path.stem for path in shipped("methods").values())]
    head = 2 * 4096 * 32000 / 1e12
    assert rows["dense"]["tflops"] - head == pytest.approx(8.504, abs=1e-3)
    assert rows["shortv_llava_1.5_7b"]["tflops"] - head == pytest.approx(4.7, abs=0.05)  # 8.5 to 4.7 T published
    assert rows["fastv_k2_r50"]["kept"][:3] == [1, 1, 0.5]
    assert "layers 0 to 31" in rows["shortv_llava_1.5_13b"]["note"] and rows["shortv_llava_1.5_13b"]["tflops"] is None
    assert rows["mindskip_rows"]["note"] == "leaves out nothing of this prompt before it is trained"


def test_a_folder_and_a_table(tmp_path):
    model = FAMILIES["llava-llama"].model(torch.float32)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(tmp_path)
    asked = ["{name: mod, keep: 0.25}", "skip_vision_llava", "shortv_llava_1.5_7b"]
    result = run_cli("cost", tmp_path, *asked, "--vision-rows", 10, "--groups", 2, "--lossless")
    assert result.code == 0, result.err
    assert "one prompt of 64 text and 10 vision rows in 2 group(s)" in " ".join(result.out.split())
    assert asked[0] in result.out and "shortv_llava_1.5_7b: layers" in result.out


def test_bad_input_is_one_line_and_exit_2(tmp_path):
    for arguments, words in [
        (["llava-7b"], "did you mean 'llava-1.5-7b'"),
        ([tmp_path], "no model's config.json"),
        (["llava-1.5-7b", "fastvv"], "no such file, nor a shipped name"),
        (["llava-1.5-7b", "{name: mod, kep: 1}"], "did you mean 'keep'"),
        (["llava-1.5-7b", "no.yaml"], "no.yaml"),
    ]:
        result = run_cli("cost", *arguments)
        assert (result.code, result.out) == (2, ""), arguments
        assert words in result.err and "Traceback" not in result.err
