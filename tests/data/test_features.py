"""The feature cache: what is read is what the tower gives, whoever made it and however often they were stopped."""

import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch

from tests.data.gray import gray_clip, two_colours
from vtskip.data.features import FeatureCache, FeatureSpec
from vtskip.data.video import probe, read_frames, sampled
from vtskip.errors import ConfigError, DataError, VideoError

SPEC = FeatureSpec(encoder="means", fingerprint="0", size=32, fps=2.0, layout="1+1x2", tokens=3, width=2)


def encode(frames: np.ndarray) -> torch.Tensor:
    """Three tokens of two numbers per frame: means of parts of it."""
    x = torch.from_numpy(frames).double() / 255
    parts = torch.stack([x, x * 0 + x.mean((1, 2, 3), keepdim=True), x**2], 1)
    return torch.stack([parts[:, :, :, :16].mean((2, 3, 4)), parts[:, :, :, 16:].mean((2, 3, 4))], -1)


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    fast = gray_clip(folder / "fast.mp4", count=7, fps=1)  # sampled faster than it plays
    return [gray_clip(folder / "a.mp4", fps=10), fast, two_colours(folder / "i.png", 8, 8)]


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(tmp_path / "features", SPEC, torch.float64)


def filled(cache, videos, encode=encode, batch=4):
    seen = []
    cache.fill(videos, encode, lambda video, result, fault: seen.append((video.name, result, fault)), batch)
    return seen


def test_what_is_read_is_what_was_encoded(cache, videos):
    assert filled(cache, videos) == [(v.name, "made", None) for v in videos]
    for video in videos:
        frames = sampled(probe(video), 2)
        some = [*frames[::-1], frames[0], frames[-1]]
        assert torch.equal(cache.read(video, some), encode(read_frames(video, some, 32)))
        assert cache.read(video, some[:1]).shape == (1, 3, 2)
    assert cache.empty().shape == (0, 3, 2)


def test_only_what_is_missing_is_made(cache, videos):
    encoded = []

    def counted(frames):
        encoded.append(len(frames))
        return encode(frames)

    filled(cache, videos[:1], counted)
    assert encoded == [4, 4, 4] and [r for _, r, _ in filled(cache, videos, counted)] == ["kept", "made", "made"]
    assert encoded[3:] == [4, 3, 1]
    again = FeatureCache(cache.folder, SPEC)  # the folder's own type
    assert [r for _, r, _ in filled(again, videos, counted)] == ["kept"] * 3 and again.dtype == torch.float64


def test_the_key_is_the_content(cache, videos, tmp_path):
    filled(cache, videos)
    moved = tmp_path / "elsewhere.mp4"
    moved.write_bytes(videos[0].read_bytes())
    assert torch.equal(cache.read(moved, [5]), cache.read(videos[0], [5]))
    before = cache.digest(videos[0])
    gray_clip(videos[0], count=59)
    assert FeatureCache(cache.folder, SPEC).digest(videos[0]) != before
    with pytest.raises(DataError, match=rf"{videos[0]}: no features in .*vtskip data features"):
        cache.read(videos[0], [5])


def test_the_hash_of_a_file_is_remembered(cache, videos, monkeypatch):
    first = cache.digest(videos[0])
    monkeypatch.setattr("hashlib.file_digest", lambda *a: pytest.fail("read the video again"))
    other = FeatureCache(cache.folder, SPEC)
    assert other.digest(videos[0]) == first
    (note,) = (cache.folder / "hashes").glob("*.json")
    note.write_text("{")
    monkeypatch.undo()
    assert (
        FeatureCache(cache.folder, SPEC).digest(videos[0]) == first and json.loads(note.read_text())["sha256"] == first
    )


def test_every_setting_has_its_own_folder(cache, videos):
    names = {SPEC.name}
    for change in ("encoder", "fingerprint", "layout"):
        names.add(SPEC.model_copy(update={change: "x"}).name)
    for change in ("size", "fps", "tokens", "width"):
        names.add(SPEC.model_copy(update={change: 9}).name)
    assert len(names) == 8 and SPEC.name.startswith("2fps_32_1+1x2_")
    filled(cache, videos[2:])
    cache.check()
    other = FeatureCache(cache.folder, SPEC.model_copy(update={"fingerprint": "1", "fps": 4.0}))
    with pytest.raises(
        DataError, match=rf"present: {SPEC.name.replace('+', '.')} \(another fingerprint, another fps\)"
    ):
        other.check()
    with pytest.raises(ConfigError, match=r"holds features in float64, not torch\.float16; choose another folder"):
        filled(FeatureCache(cache.folder, SPEC, torch.float16), videos)


def test_frames_that_are_not_there_are_named(cache, videos):
    filled(cache, videos)
    with pytest.raises(DataError, match=rf"no features of frame 3 of {videos[0]}; they are at 2 fps"):
        cache.read(videos[0], [0, 3])
    with pytest.raises(DataError, match="no features of frame 59"):
        cache.read(videos[0], [59])


def test_a_damaged_file_is_named(cache, videos):
    filled(cache, videos)
    path = cache.path_of(videos[0])
    for content in (b"", path.read_bytes()[:200], b"x" * 300):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"{path.name}: damaged .*remove it"):
            cache.read(videos[0], [0])
    (cache.root / "spec.json").write_text('{"dtype": "float32", "spec": {"encoder": 3}}')
    with pytest.raises(ConfigError, match=r"spec.json.*encoder"):
        filled(cache, videos)


def test_a_fault_of_one_video_leaves_the_others(cache, videos, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    seen = filled(cache, [broken, *videos])
    assert seen[0][:2] == ("broken.mp4", "failed")
    assert isinstance(seen[0][2], VideoError) and [r for _, r, _ in seen[1:]] == ["made"] * 3


def test_a_wrong_shape_is_refused(cache, videos):
    ((_, result, fault),) = filled(cache, videos[:1], lambda frames: encode(frames)[:, :2])
    assert result == "failed" and "features of shape [12, 2, 2], expected [12, 3, 2]" in str(fault)
    assert not list(cache.root.rglob("*.safetensors"))


def test_a_stop_in_the_middle_leaves_whole_files(cache, videos):
    def stopped(frames):
        raise KeyboardInterrupt

    filled(cache, videos[:1])
    with pytest.raises(KeyboardInterrupt):
        filled(cache, videos, stopped)
    assert len(list(cache.root.rglob("*.safetensors"))) == 1 and not list(cache.root.rglob("*.part"))
    assert [r for _, r, _ in filled(cache, videos)] == ["kept", "made", "made"]


def _work(folder, videos, log, slow):
    cache = FeatureCache(folder, SPEC, torch.float64)

    def one(frames):
        time.sleep(slow)
        return encode(frames)

    def done(video, result, fault):
        with open(log, "a") as file:
            file.write(f"{video.name} {result} {os.getpid()}\n")

    cache.fill(videos, one, done)


def test_processes_share_the_work_and_a_killed_one_s_share_is_taken_over(tmp_path):
    videos = [gray_clip(tmp_path / f"{i}.mp4", count=20 + i, fps=10) for i in range(6)]
    log, context = tmp_path / "log", multiprocessing.get_context("fork")
    stuck = context.Process(target=_work, args=(tmp_path / "f", videos, log, 60))
    stuck.start()
    claims = tmp_path / "f" / SPEC.name / ".claims"
    while not claims.exists():
        time.sleep(0.02)
    workers = [context.Process(target=_work, args=(tmp_path / "f", videos, log, 0.05)) for _ in range(2)]
    for worker in workers:
        worker.start()
    while not log.exists() or log.read_text().count("made") < 5:
        time.sleep(0.02)
    assert all(worker.is_alive() for worker in workers)  # they wait for the one that is claimed
    os.kill(stuck.pid, signal.SIGKILL)
    for process in (stuck, *workers):
        process.join()
    lines = [line.split() for line in log.read_text().splitlines()]
    assert sorted(name for name, result, _ in lines if result == "made") == sorted(v.name for v in videos)
    assert len(lines) == 12 and [w.exitcode for w in workers] == [0, 0]
    cache = FeatureCache(tmp_path / "f", SPEC)
    for video in videos:
        frames = sampled(probe(video), 2)
        assert torch.equal(cache.read(video, frames), encode(read_frames(video, frames, 32)))


def _stuck_in_a_save(folder, videos):
    def half(tensors, path, metadata):
        path.write_bytes(b"\0" * 100)
        time.sleep(600)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", half)
        FeatureCache(folder, SPEC, torch.float64).fill(videos, encode, lambda *told: None)


def test_a_process_killed_while_it_writes_leaves_nothing_that_is_read(tmp_path):
    videos = [gray_clip(tmp_path / f"{i}.mp4", count=20 + i, fps=10) for i in range(3)]
    log, context = tmp_path / "log", multiprocessing.get_context("fork")
    stuck = context.Process(target=_stuck_in_a_save, args=(tmp_path / "f", videos))
    stuck.start()
    while not any(part.stat().st_size for part in (tmp_path / "f").rglob("*.part")):
        time.sleep(0.02)
    workers = [context.Process(target=_work, args=(tmp_path / "f", videos, log, 0)) for _ in range(2)]
    for worker in workers:
        worker.start()
    os.kill(stuck.pid, signal.SIGKILL)
    for process in (stuck, *workers):
        process.join()
    assert [w.exitcode for w in workers] == [0, 0] and not list((tmp_path / "f").rglob("*.part"))
    cache = FeatureCache(tmp_path / "f", SPEC)
    for video in videos:
        frames = sampled(probe(video), 2)
        assert torch.equal(cache.read(video, frames), encode(read_frames(video, frames, 32)))
