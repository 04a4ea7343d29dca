"""Odd clips can be read, broken ones are refused by our error, and damage is what it says."""

import json
import shutil
from fractions import Fraction

import numpy as np
import pytest

from vtskip.cli.main import main
from vtskip.data import DataConfig, build
from vtskip.data.check import check
from vtskip.data.files import read_json
from vtskip.data.synthetic.damage import BROKEN, ODD, damage, write_odd
from vtskip.data.video import probe, read_frames
from vtskip.errors import ConfigError, VideoError


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    return write_odd(tmp_path_factory.mktemp("odd"))


def test_odd_clips_can_be_read(odd):
    assert set(odd) == {*ODD, *BROKEN}
    infos = {kind: probe(odd[kind]) for kind in ODD}
    assert {kind: info.frames for kind, info in infos.items()} == {"b_frames": 40, "wide": 40, "single": 1, "audio": 40}
    assert infos["b_frames"].fps == Fraction(30000, 1001)
    assert (infos["wide"].width, infos["wide"].height) == (320, 180)
    for kind in ODD:
        last = infos[kind].frames - 1
        frames = read_frames(odd[kind], [0, last])
        assert frames.shape == (2, infos[kind].height, infos[kind].width, 3)
    # out of order and with a sound track beside it, a frame is still the same frame
    a, b = (read_frames(odd[kind], [30, 5]).astype(int) for kind in ("b_frames", "audio"))
    assert np.abs(a - b).mean() < 6


def test_the_sound_track_is_there(odd):
    import av

    with av.open(str(odd["audio"])) as held:
        assert len(held.streams.audio) == 1 and held.streams.audio[0].codec_context.name == "aac"


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_clips_are_refused_by_name(odd, kind):
    with pytest.raises(VideoError, match=f"{kind}.mp4"):
        read_frames(odd[kind], list(range(40)))


def test_a_damaged_set_is_counted_by_the_check(smoke, tmp_path):
    out = tmp_path / "set"
    shutil.copytree(smoke, out)
    broken = damage(out / "videos", 0.25, seed=3)
    assert len(broken) == 3 and set(broken.values()) == set(BROKEN) == {"truncated", "empty", "text"}
    again = tmp_path / "again"
    shutil.copytree(smoke / "videos", again)
    assert damage(again, 0.25, seed=3) == broken and damage(again, 0.25, seed=4) != broken
    config = DataConfig(
        kind="ego4d_narration", root=out, annotations="ego4d/narration.json", videos="videos", on_error="skip"
    )
    report = check(config)
    assert report.share == pytest.approx(3 / 12)
    untouched = [p for p in (smoke / "videos").iterdir() if p.name not in broken]
    assert all((out / "videos" / p.name).read_bytes() == p.read_bytes() for p in untouched)


def test_a_set_is_made_damaged_and_every_file_is_named(smoke, tmp_path, capsys):
    """20 % and more of the clips: a reader stops at the first or leaves out all, a check tells each and how many."""
    out = tmp_path / "set"
    shutil.copytree(smoke, out)
    command = ["data", "make", "synthetic", "--tier", "smoke", "--out", str(out), "--damage", "0.25"]
    assert main(command) == 0
    broken = read_json(out / "damaged.json")["broken"]
    printed = capsys.readouterr().out
    assert len(broken) == 3 and all(f"{name}: {kind}" in printed for name, kind in broken.items())
    before = {path: path.read_bytes() for path in (out / "videos").iterdir()}
    assert main([*command, "--json"]) == 0 and json.loads(capsys.readouterr().out)["damaged"] == broken
    assert all(path.read_bytes() == data for path, data in before.items())
    assert main([*command[:-1], "0.5"]) == 2 and "is damaged already" in capsys.readouterr().err

    check = ["data", "check", "synthetic", f"root={out}", "tier=smoke", "split=null", "--json"]
    for share, code in (("0.2", 1), ("0.25", 0)):
        assert main([*check, "--max-failures", share]) == code
        (report,) = json.loads(capsys.readouterr().out).values()
        assert (report["units"], report["failed"]) == (12, 3)
        assert all(any(name in fault["message"] for fault in report["faults"]) for name in broken)
    config = DataConfig(kind="synthetic", root=out, tier="smoke", task="step")
    with pytest.raises(VideoError, match=sorted(broken)[0]):
        build(config, progress=False)
    left = {s.video.name for s in build(config.model_copy(update={"on_error": "skip"}), progress=False)}
    assert left == {path.name for path in before} - set(broken)


def test_odd_files_are_made_beside_a_set(smoke, tmp_path, capsys):
    out = tmp_path / "set"
    shutil.copytree(smoke, out)
    command = ["data", "make", "synthetic", "--tier", "smoke", "--out", str(out), "--odd"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    for kind in ODD:
        assert f"odd/{kind}.mp4: readable" in printed
        assert probe(out / f"odd/{kind}.mp4").frames in (1, 40)
    for kind in BROKEN:
        assert f"odd/{kind}.mp4: broken" in printed
        with pytest.raises(VideoError):
            probe(out / f"odd/{kind}.mp4")
    assert (out / "manifest.json").read_bytes() == (smoke / "manifest.json").read_bytes()
    assert main([*command, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["odd"]) == {*ODD, *BROKEN}


def test_refusals(tmp_path):
    for share in (0, 1.1):
        with pytest.raises(ConfigError, match="share"):
            damage(tmp_path, share)
    with pytest.raises(ConfigError, match="no videos"):
        damage(tmp_path, 0.2)
