"""Which words of synthetic narrations are right, counted where they cannot be copied from the reply before."""

from vtskip.eval.records import FrameScores, TurnRecord
from vtskip.eval.words import learned, parts_of, word_counts

TEXTS = ["C opens the red cup.", "C picks up the red cup.", "C stirs the blue plate.", "C presses the blue lamp."]


def turn(text: str, wrong: tuple[str, ...] = ()) -> TurnRecord:
    words = ["Assistant", *text.removesuffix(".").split(), ".", "</s>"]
    target = list(range(len(words)))
    said = [-1 if word in wrong else n for n, word in enumerate(words)]
    content = [False] + [True] * (len(words) - 2) + [False]
    scores = FrameScores.constant(1, True)
    return TurnRecord(0, 1, 0, False, 0, scores, [True], [0.0] * len(words), target, said, content)


def test_parts_of_a_narration():
    assert parts_of("C picks up the red cup.") == {"verb": 1, "colour": 4, "shape": 5}
    assert parts_of("C moves the empty hand.") == {} == parts_of("red cup.")


def test_things_count_where_they_are_new_and_the_first_reply_does_not():
    turns = [turn(TEXTS[0], ("red",)), turn(TEXTS[1], ("red",)), turn(TEXTS[2], ("blue", "stirs")), turn(TEXTS[3])]
    assert word_counts(turns, TEXTS) == {
        "verb_accuracy": (2, 3),
        "colour_accuracy": (1, 2),
        "shape_accuracy": (2, 2),
    }


def test_tokens_that_are_no_words_are_not_counted():
    assert word_counts([turn(TEXTS[0])], TEXTS) == {}
    assert word_counts([turn("C picks up the dark red cup."), turn(TEXTS[1])], TEXTS[:2]) == {}


def test_only_what_is_learned_is_a_reply():
    said = {"role": "assistant", "content": "C opens the red cup."}
    assert learned([{"role": "user", "content": "Go."}, said, said | {"learn": True}]) == [said["content"]]
