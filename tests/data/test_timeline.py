"""Texts on the frame grid, stretches of long videos, conversations."""

import random

import pytest

from vtskip.data.timeline import Narration, Window, clean_text, frame_at, narration_turns, text_marks, windows


@pytest.mark.parametrize("fps", [2, 5, 10, 25, 30])
def test_frames_of_grid_times_are_exact(fps):
    """Multiplying float times loses frames at these rates; the index of k / fps must be k in every mode."""
    for k in range(5000):
        assert all(frame_at(k / fps, fps, mode) == k for mode in ("ceil", "round", "floor"))


def test_an_event_is_never_placed_before_it_happened():
    assert [frame_at(t, 2) for t in (0.0, 0.01, 0.5, 0.51, 3.21)] == [0, 1, 1, 2, 7]
    assert [frame_at(t, 2, "floor") for t in (0.49, 0.5, 3.21)] == [0, 1, 6]


def test_repeated_texts_are_skipped_and_the_later_of_one_frame_stays():
    texts = [(0.6, "A b."), (0.9, "C d."), (1.4, "C d."), (2.0, "A b."), (3.9, "E f."), (3.95, "G h.")]
    assert text_marks([Narration(*t) for t in texts], total=8, fps=2) == [(2, "C d."), (4, "A b."), (7, "E f.")]


@pytest.mark.parametrize(
    "raw, clean", [("#O Man X  waves.", "Man X waves."), ("#unsure", "."), ("#c C #Unsure eats,", "C eats.")]
)
def test_clean_text(raw, clean):
    assert clean_text(raw) == clean


@pytest.mark.parametrize("lead_in", [True, False])
@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("limit", [None, 2, 7, 30])
def test_stretches_keep_every_text_and_never_overlap(lead_in, tail, limit):
    rng = random.Random(0)
    for _ in range(50):
        total = rng.randint(2, 80)
        marks = [(frame, f"t{frame}") for frame in sorted(rng.sample(range(total), rng.randint(1, min(6, total))))]
        parts = windows(marks, total, limit, lead_in, tail)
        assert [mark for part in parts for mark in part.marks] == marks
        previous = -1
        for part in parts:
            assert previous < part.first <= part.marks[0][0] and part.marks[-1][0] <= part.last < total
            assert part.last - part.first + 1 <= (limit or total)
            previous = part.last
        if not limit:
            assert (parts[0].first, parts[-1].last) == (
                0 if lead_in else marks[0][0],
                total - 1 if tail else marks[-1][0],
            )


def test_a_conversation_shows_one_frame_asks_and_alternates():
    turns = narration_turns(Window([(5, "A b."), (9, "C d.")], first=3, last=12), "S", "Narrate.")
    assert turns == [
        {"role": "system", "content": "S"},
        {"role": "stream", "num_frames": 1, "learn": False},
        {"role": "user", "content": "Narrate."},
        {"role": "stream", "num_frames": 2, "learn": True},
        {"role": "assistant", "content": "A b.", "learn": True},
        {"role": "stream", "num_frames": 4, "learn": True},
        {"role": "assistant", "content": "C d.", "learn": True},
        {"role": "stream", "num_frames": 3, "learn": 2},
    ]


def test_a_text_on_the_first_frame_follows_the_instruction():
    turns = narration_turns(Window([(3, "A b.")], first=3, last=3), "", "Narrate.")
    assert [turn["role"] for turn in turns] == ["stream", "user", "assistant"]
