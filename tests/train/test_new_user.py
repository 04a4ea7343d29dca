"""A new user's path as it is written: own conversations and videos, a copied file, dry run, training, evaluation, streaming."""

import json

import pytest
import yaml

from tests.fixtures_stream import run_cli
from tests.train import stand_ins
from tests.train.test_configs import TOWER
from vtskip.data.synthetic.encode import write_video

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220)}


@pytest.fixture
def my_data(tmp_path):
    """Plain clips, each of one colour, and what to say about them."""
    import numpy as np

    folder, records = tmp_path / "my_data", []
    (folder / "videos").mkdir(parents=True)
    for number in range(9):
        name = [*COLOURS][number % 3]
        frames = np.broadcast_to(np.array(COLOURS[name], np.uint8), (20, 32, 32, 3))
        write_video(folder / "videos" / f"{number}.mp4", frames, 10)
        records.append(
            stand_ins.talk(str(number), "<video>\nWhat colour is it ?", f"It is {name} .", video=f"{number}.mp4")
        )
    (folder / "conversations.json").write_text(json.dumps(records))
    return folder


@pytest.mark.slow
def test_from_own_videos_to_a_stream(my_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lm = stand_ins.language_model(
        tmp_path / "lm", ["What colour is it ?", "It is red .", "It is green .", "It is blue ."]
    )
    small = [
        f"model.lm={lm}",
        TOWER,
        "model.vision_pretrained=null",
        "precision=fp32",
        "trains.vision=true",
        "workers=0",
    ]
    longer = ["optim.steps=100", "optim.lr=1e-2", "optim.lrs={}", "save_every=30", "method.keep=0.5"]

    assert run_cli("config", "cp", "own_videos").out.strip() == "own_videos.yaml"
    checked = run_cli("data", "check", "own_videos.yaml")
    assert checked.code == 0, checked.err
    dry = run_cli("train", "own_videos.yaml", "--dry-run", *small)
    assert dry.code == 0 and "It" in dry.out and not (tmp_path / "runs").exists(), dry.err
    trained = run_cli("train", "own_videos.yaml", *small, *longer, "--json")
    assert trained.code == 0 and json.loads(trained.out)["loss"] < 0.5, trained.err

    settings = {"model": "runs/own_videos", "data": {"kind": "llava", "root": "my_data", "max_frames": 32}}
    settings["data"] |= {"annotations": "conversations.json", "videos": "videos"}
    settings |= {"tasks": ["visual_qa"], "rows": ["blind"], "out": "runs/own_eval"}
    (tmp_path / "eval.yaml").write_text(yaml.safe_dump(settings))
    evaluated = run_cli("eval", "eval.yaml")
    assert evaluated.code == 0, evaluated.err
    rows = json.loads((tmp_path / "runs/own_eval/record.json").read_text())["tasks"]["visual_qa"]["rows"]
    own, blind = (rows[name]["strict"]["accuracy"]["value"] for name in ("model", "blind"))
    assert own == 1.0 and blind <= 0.5

    streamed = run_cli(
        *("stream", "my_data/videos/1.mp4", "--model", "runs/own_videos", "--query", "What colour is it ?@1.0"),
        *("--vtt", "clip.vtt", "--json"),
    )
    assert streamed.code == 0, streamed.err
    said = [event["text"] for event in json.loads(streamed.out)["events"]]
    assert any("green" in text for text in said) and (tmp_path / "clip.vtt").exists()
    exported = run_cli("export", "runs/own_videos", "release")
    assert exported.code == 0 and (tmp_path / "release" / "model.safetensors").exists()
