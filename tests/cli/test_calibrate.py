"""``vtskip calibrate``: from a checkpoint and clips to a method, whole or in parts."""

import json

import pytest
import torch
import yaml

import vtskip
from tests.fixtures_stream import DIALOGUE, run_cli
from vtskip.calibrate import layer_contribution
from vtskip.calibrate.prompts import draw, inputs_of, prompts_of
from vtskip.data import DataConfig, build
from vtskip.streaming.loading import load_stream

FILES = ("scores.json", "calibration.json", "calibration.png", "method.yaml")


@pytest.fixture
def values(checkpoint, clips, tmp_path):
    """Values of a CalibrateConfig: the three replies of the two clips."""
    data = {"kind": "ego4d_narration", "annotations": str(clips / "narration.json"), "videos": str(clips / "videos")}
    return {"model": str(checkpoint), "data": data | DIALOGUE, "prompts": 3, "out": str(tmp_path / "out")}


def calibrate(values, folder, *arguments):
    path = folder / "calibrate.yaml"
    path.write_text(yaml.safe_dump(values))
    return run_cli("calibrate", path, *arguments)


def test_the_method_it_writes_is_the_one_with_the_lowest_scores(values, checkpoint, tmp_path):
    """The scores are those of ``layer_contribution`` in Python on the same prompts, and method.yaml attaches."""
    result = calibrate(values, tmp_path, "choose.count=2", "--json")
    assert result.code == 0, result.err
    record = json.loads(result.out)
    assert record == json.loads((tmp_path / "out/calibration.json").read_text())
    opened = load_stream(checkpoint)
    opened.handle.detach()
    prompts = draw(prompts_of(build(DataConfig(**values["data"]))), 3, 0)
    assert len({p.uid for p in prompts}) == 3
    ours = layer_contribution(opened.model, [inputs_of(opened, p) for p in prompts])
    assert torch.allclose(torch.tensor([p["values"] for p in record["prompts"]]), ours.scores, rtol=1e-6, atol=0)
    assert record["order"] == ours.order and record["layers"] == ours.layers(2)
    assert ours.mean[-1] == pytest.approx(0, abs=1e-9) and (ours.scores[:, :-1] > 1e-6).all()
    assert [(p["rows"], p["vision_rows"]) for p in record["prompts"]] == [
        (inputs_of(opened, p)["input_ids"].shape[1], 5 * len(p.frames)) for p in prompts
    ]
    with vtskip.attach(opened.model, tmp_path / "out/method.yaml") as handle:
        assert handle.method.name == "shortv" and handle.method.layers == ours.layers(2)
        opened.model(**inputs_of(opened, prompts[0]))
        assert [layer.kept for layer in handle.report().layers] == [float(i not in ours.layers(2)) for i in range(4)]


def test_an_interrupted_run_goes_on_and_ends_with_the_same_files(values, tmp_path, monkeypatch):
    from vtskip.calibrate import run as module

    whole = tmp_path / "whole"
    assert calibrate(values | {"out": str(whole)}, tmp_path).code == 0
    real, asked = module.inputs_of, []

    def interrupted(checkpoint, prompt, end):
        asked.append(prompt.uid)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(checkpoint, prompt, end)

    monkeypatch.setattr(module, "inputs_of", interrupted)
    assert calibrate(values, tmp_path).code == 130
    out = tmp_path / "out"
    assert [p.name for p in out.iterdir()] == ["scores.json"]
    assert len(json.loads((out / "scores.json").read_text())["prompts"]) == 2
    asked.append("three are asked already")
    assert calibrate(values, tmp_path).code == 0
    assert len(asked) == 5, "the two kept prompts are not run again"
    for name in FILES:
        mine, theirs = (folder / name for folder in (out, whole))
        if name == "calibration.json":  # it tells where it was written
            assert mine.read_text().replace(str(out), "X") == theirs.read_text().replace(str(whole), "X")
        else:
            assert mine.read_bytes() == theirs.read_bytes(), name
    assert (out / "calibration.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=1", "seed 0"),
        ("direction=original", "direction 'altered'"),
        ("data.fps=1", "data.fps 2.0"),
        ("prompts=2", "prompts 3"),
    ],
)
def test_scores_of_another_configuration_are_refused_by_key(values, tmp_path, override, said):
    assert calibrate(values, tmp_path).code == 0
    before = {name: (tmp_path / "out" / name).read_bytes() for name in FILES}
    result = calibrate(values, tmp_path, override)
    assert (result.code, result.out) == (2, "")
    assert f"made with {said}" in result.err and "--no-resume" in result.err
    assert {name: (tmp_path / "out" / name).read_bytes() for name in FILES} == before
    assert calibrate(values, tmp_path, override, "--no-resume").code == 0


def test_other_weights_under_the_same_name_are_refused(values, copied, tmp_path):
    from vtskip.models.streaming_llava import StreamingLlava

    values |= {"model": str(copied)}
    assert calibrate(values, tmp_path).code == 0
    model = StreamingLlava.from_pretrained(copied)
    model.language_model.lm_head.weight.data.mul_(2)
    model.save_pretrained(copied)
    result = calibrate(values, tmp_path)
    assert result.code == 2
    assert "made with model.weights" in result.err


def test_another_choice_uses_the_kept_scores(values, tmp_path, monkeypatch):
    assert calibrate(values, tmp_path, "choose.count=1").code == 0
    monkeypatch.setattr("vtskip.calibrate.run.inputs_of", None)  # nothing is run again
    result = calibrate(values, tmp_path, "choose.quantile=1.0")
    assert result.code == 0, result.err
    assert "layers that skip (4 of 4): 0, 1, 2, 3" in result.out
    assert yaml.safe_load((tmp_path / "out/method.yaml").read_text()) == {"name": "shortv", "layers": [0, 1, 2, 3]}


def test_arank_writes_gamma_mod(values, checkpoint, tmp_path):
    result = calibrate(values, tmp_path, "score=arank", "choose.count=2", "--json")
    assert result.code == 0, result.err
    record = json.loads(result.out)
    rows = torch.tensor([p["rows"] for p in record["prompts"]])
    ranks = torch.tensor([p["values"] for p in record["prompts"]])
    assert (ranks > 1).all() and (ranks < rows[:, None]).all()
    assert torch.allclose(torch.tensor(record["mean"]), (ranks / rows[:, None]).mean(0))
    assert torch.allclose(torch.tensor(record["mean_rank"]), ranks.mean(0)) and "direction" not in record
    layers = sorted(record["order"][:2])
    method = yaml.safe_load((tmp_path / "out/method.yaml").read_text())
    assert method == {"name": "gamma_mod", "schedule": {"kind": "list", "layers": layers}}
    opened = load_stream(checkpoint)
    opened.handle.detach()
    prompt = draw(prompts_of(build(DataConfig(**values["data"]))), 1, 0)[0]
    with vtskip.attach(opened.model, tmp_path / "out/method.yaml") as handle:
        opened.model(**inputs_of(opened, prompt))
        assert [layer.kept < 1 for layer in handle.report().layers] == [i in layers for i in range(4)]


def test_prompts_may_end_inside_the_reply(values, checkpoint, tmp_path):
    """Before a drawn token of it: after none of its tokens or several, never after the last."""
    opened = load_stream(checkpoint)
    all_prompts = prompts_of(build(DataConfig(**values["data"])))
    added = []
    for seed in range(12):
        for prompt in draw(all_prompts, 3, seed):
            plain, ids = (inputs_of(opened, prompt, end)["input_ids"][0].tolist() for end in ("start", "inside"))
            reply = opened.template.text(" " + prompt.meta["reply"])
            assert ids[: len(plain)] == plain and ids[len(plain) :] == reply[: len(ids) - len(plain)]
            added.append(len(ids) - len(plain))
            assert added[-1] < len(reply)
    assert set(added) >= {0, 1, 2}
    record = json.loads(calibrate(values, tmp_path, "end=inside", "--json").out)
    expected = [inputs_of(opened, p, "inside")["input_ids"].shape[1] for p in draw(all_prompts, 3, 0)]
    assert [p["rows"] for p in record["prompts"]] == expected


def test_a_stock_model_is_refused_with_the_way_to_calibrate_it(values, tmp_path):
    from transformers import LlamaConfig

    LlamaConfig().save_pretrained(tmp_path / "llama")
    result = calibrate(values, tmp_path, f"model={tmp_path / 'llama'}")
    assert result.code == 2
    assert "is a llama model" in result.err and "vtskip.calibrate.layer_contribution(model, samples)" in result.err


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model=/nowhere/at/all"], "/nowhere/at/all"),
        (["prompts=4"], "prompts 4: the data hold 3 replies; accepted: 1 to 3"),
        (["prompt=4"], "did you mean 'prompts'"),
        (["choose.count=2", "choose.quantile=0.5"], "given: count, quantile"),
        (["choose.count=5"], "5 layers of 4"),
        (["choose.rank=100"], "belongs to score arank"),
        (["score=arank", "direction=altered"], "belongs to score layer_contribution"),
        (["score=arnak"], "did you mean 'arank'"),
        (["data.split=train"], "splits"),
    ],
    ids=" ".join,
)
def test_bad_configuration_is_one_line_and_exit_2(values, tmp_path, overrides, said):
    result = calibrate(values, tmp_path, *overrides)
    assert (result.code, result.out) == (2, "")
    assert said in result.err
    assert "Traceback" not in result.err


def test_damaged_scores_are_named(values, tmp_path):
    assert calibrate(values, tmp_path).code == 0
    (tmp_path / "out/scores.json").write_text('{"made_with": {')
    result = calibrate(values, tmp_path)
    assert result.code == 2
    assert "scores.json: not a file of scores" in result.err


def test_the_train_split_is_the_default():
    from vtskip.calibrate.config import CalibrateConfig

    def split(**data):
        return CalibrateConfig(model="m", out="o", data=data).clips.split

    files = {"annotations": "a.json", "videos": "v"}
    assert split(kind="synthetic", root="r") == split(kind="coin", **files) == "train"
    assert split(kind="ego4d_narration", splits="s.json", **files) == "train"
    assert split(kind="ego4d_narration", **files) is None
    assert split(kind="synthetic", root="r", split="test") == "test"
