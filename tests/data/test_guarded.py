"""Broken videos in training: named, skipped and counted, also in and after a worker process."""

import os
import pickle
import signal

import pytest
import torch
from torch.utils.data import DataLoader

from tests.data.gray import gray_clip
from vtskip.data.collate import StreamCollator
from vtskip.data.guarded import Guarded, _remove
from vtskip.data.types import Sample
from vtskip.errors import DataError, VideoError

TALK = {"role": "assistant", "content": "yes", "learn": True}


class _Template:
    def encode(self, conversation, generation_prompt=False):
        return type("Encoded", (), {"input_ids": [1], "labels": [1]})()


def _sample(path, frames):
    shown = [{"role": "stream", "num_frames": len(frames), "learn": True}] if frames else []
    return Sample(path.stem, path, 2, frames, [*shown, TALK])


@pytest.fixture
def samples(tmp_path):
    """Of 1 to 5 frames; the third and the fifth are broken, the last shows nothing."""
    made = [_sample(gray_clip(tmp_path / f"v{n}.mp4", count=8), list(range(n))) for n in range(1, 6)]
    for number in (2, 4):
        made[number].video.write_bytes(b"")
    return [*made, _sample(tmp_path / "text.mp4", [])]


def _collator(size=8):
    return StreamCollator(_Template(), size, 0)


def _uids(guarded):
    return [guarded[i].sample.uid for i in range(len(guarded))]


def test_what_is_whole_passes_unchanged(samples):
    collator = _collator()
    whole = [samples[i] for i in (0, 1, 3, 5)]
    guarded = Guarded(whole, collator.look)
    own, plain = collator([guarded[i] for i in range(4)]), collator(whole)
    assert own.keys() == plain.keys() and all(torch.equal(own[key], plain[key]) for key in own)
    assert guarded.faults() == {} and len(guarded) == 4


def test_a_broken_one_stops_with_its_name(samples):
    guarded = Guarded(samples, _collator().look)
    for _ in range(2):
        with pytest.raises(VideoError, match=r"v3\.mp4: video is empty"):
            guarded[2]
    assert list(guarded.faults()) == ["v3"]


def test_a_broken_one_is_replaced_by_the_next_smaller_and_counted_once(samples, tmp_path):
    log = tmp_path / "run/broken.jsonl"
    guarded = Guarded(samples, _collator().look, "skip", log)
    for _ in range(2):
        assert _uids(guarded) == ["v1", "v2", "v2", "v4", "v4", "text"]
    assert len(log.read_text().splitlines()) == 2
    again = Guarded(samples, _collator().look, "skip", log)  # another rank
    again[4]
    assert set(again.faults()) == {"v3", "v5"} and "v5.mp4: video is empty" in again.faults()["v5"]
    # by sizes of its own, and larger ones where no smaller one is left
    sized = Guarded(samples, _collator().look, "skip", sizes=[5, 1, 0, 9, 8, 3])
    assert _uids(sized) == ["v1", "v2", "v2", "v4", "v1", "text"]


def test_none_left_is_an_error(samples):
    with pytest.raises(DataError, match=r"none of 2 samples can be read; the first fault: .*v3\.mp4"):
        Guarded([samples[2], samples[4]], _collator().look, "skip")[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_skips_and_names_in_its_workers(samples, workers):
    collator = _collator()
    guarded = Guarded(samples, collator.look, "skip")
    loader = DataLoader(guarded, batch_size=3, num_workers=workers, collate_fn=collator)
    assert [len(batch["frames"]) for batch in loader] == [1 + 2 + 2, 4 + 4 + 0]
    assert set(guarded.faults()) == {"v3", "v5"}
    strict = Guarded(samples, collator.look)
    with pytest.raises(DataError, match=r"^[^\n]*v3\.mp4: video is empty \(0 bytes\)$"), strict.named():
        list(DataLoader(strict, batch_size=3, num_workers=workers, collate_fn=collator))


def _die(sample):
    if sample.uid == "v4":
        os.kill(os.getpid(), signal.SIGKILL)
    return torch.zeros(0)


def test_a_worker_that_dies_is_told_with_its_file(samples):
    guarded = Guarded(samples, _die)
    loader = DataLoader(guarded, batch_size=2, num_workers=1, collate_fn=list)
    told = r"died while it was reading sample 'v4', .*v4\.mp4 \(DataLoader worker"
    with pytest.raises(DataError, match=told), guarded.named():
        list(loader)
    with pytest.raises(RuntimeError, match="something else"), guarded.named():
        raise RuntimeError("something else")


def _die_after_reading(shown):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_elsewhere_is_told_as_it_is(samples):
    guarded = Guarded(samples, _collator().look, "skip")
    loader = DataLoader(guarded, batch_size=2, num_workers=1, collate_fn=_die_after_reading)
    with pytest.raises(RuntimeError, match="DataLoader worker"), guarded.named():
        list(loader)


def test_only_its_maker_removes_the_notes(samples):
    """And not a forked worker, in which the data set ends as well."""
    guarded = Guarded(samples, _die)
    _remove(guarded._notes, os.getppid())
    assert guarded._notes.is_dir()


def test_it_goes_to_spawned_workers_and_cleans_up(samples):
    guarded = Guarded(samples, _die)
    notes = guarded._notes
    copy = pickle.loads(pickle.dumps(guarded))
    assert copy._notes == notes and copy[0].sample.uid == "v1"
    del copy
    assert notes.is_dir()
    del guarded
    assert not notes.exists()
