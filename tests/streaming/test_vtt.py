"""WebVTT cues and the atomic write."""

import os

import pytest

from vtskip.errors import ConfigError
from vtskip.streaming.session import Event
from vtskip.streaming.vtt import to_vtt, write_file


def test_cues_end_at_the_next_reply_or_after_hold():
    events = [Event(1.5, "C cuts.", None, 3), Event(3.25, "C looks.", None, 6), Event(3700.0, "Done.", None, 7400)]
    assert to_vtt(events, hold=4.0) == (
        "WEBVTT\n\n"
        "00:00:01.500 --> 00:00:03.250\nC cuts.\n\n"
        "00:00:03.250 --> 00:00:07.250\nC looks.\n\n"
        "01:01:40.000 --> 01:01:44.000\nDone.\n"
    )


def test_question_is_shown_and_text_cannot_break_the_file():
    vtt = to_vtt([Event(0.0, "a <b> & c\n\n1 --> 2", "why?", 0)])
    assert vtt.splitlines()[2:] == ["00:00:00.000 --> 00:00:04.000", "Q: why?", "a &lt;b&gt; &amp; c 1 --&gt; 2"]


def test_empty_replies_and_equal_times():
    vtt = to_vtt([Event(1.0, "", None, 2), Event(2.0, "A", None, 4), Event(2.0, "B", "q", 4)])
    assert vtt.count("-->") == 2
    assert "00:00:02.000 --> 00:00:06.000\nA" in vtt


def test_no_events_is_a_valid_file():
    assert to_vtt([]) == "WEBVTT\n"


def test_write_makes_folders_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "deep" / "out.vtt"
    write_file(path, "one")
    write_file(path, "two")
    assert path.read_text() == "two"
    assert os.listdir(path.parent) == ["out.vtt"]


def test_a_failed_write_keeps_the_old_file_and_names_the_path(tmp_path, monkeypatch):
    path = tmp_path / "out.vtt"
    write_file(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ConfigError, match=r"out\.vtt.*No space left"):
        write_file(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.vtt"]


def test_a_file_in_the_place_of_a_folder_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_file(tmp_path / "file" / "out.vtt", "text")
