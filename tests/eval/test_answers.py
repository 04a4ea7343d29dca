"""Edit distances, the closest string, and the strict flavour of the accuracies."""

import random

import numpy as np
import pytest

from vtskip.errors import DataError
from vtskip.eval.answers import (
    free_reference,
    numbered,
    single_reference,
    single_strict,
    steps_reference,
    steps_strict,
)
from vtskip.eval.distance import Closest, prefix_distances
from vtskip.eval.lta import UNKNOWN, Actions, aued, edit_curve


def plain_distance(a, b, swaps=False):
    """By the definition, one pair at a time."""
    if not a or not b:
        return len(a) + len(b)
    found = [plain_distance(a[1:], b, swaps) + 1, plain_distance(a, b[1:], swaps) + 1]
    found.append(plain_distance(a[1:], b[1:], swaps) + (a[0] != b[0]))
    if swaps and a[:2] == b[1::-1] and len(a) > 1 and len(b) > 1:
        found.append(plain_distance(a[2:], b[2:], swaps) + 1)
    return min(found)


def test_distances_of_all_prefixes():
    chance = random.Random(0)
    for _ in range(20):
        a, b = (chance.choices("xyz", k=chance.randint(0, 5)) for _ in range(2))
        for edit, swaps in (("levenshtein", False), ("damerau", True)):
            table = prefix_distances(a, b, edit)
            for i in range(len(a) + 1):
                for j in range(len(b) + 1):
                    assert table[i, j] == plain_distance(a[:i], b[:j], swaps), (a[:i], b[:j], edit)


def test_a_swap_of_neighbours_costs_one_or_two():
    assert prefix_distances("ab", "ba")[-1, -1] == 2
    assert prefix_distances("ab", "ba", "damerau")[-1, -1] == 1


def test_closest_is_the_smallest_distance_and_then_text():
    chance = random.Random(1)
    words = ["".join(chance.choices("abc ", k=chance.randint(1, 6))) for _ in range(60)]
    closest = Closest(words)
    for _ in range(40):
        query = "".join(chance.choices("abcd ", k=chance.randint(0, 7)))
        assert closest(query) == min((plain_distance(query, w), w) for w in set(words))[1]
    with pytest.raises(DataError, match="no categories"):
        Closest([])


def test_an_empty_answer_is_the_shortest_category_for_the_reference_and_wrong_when_strict():
    closest = Closest(["wipe", "cut the bread"])
    assert single_reference("", "wipe", closest) == (1.0, 1.0)
    assert single_strict("", "wipe") == (0.0, 1.0)
    assert single_strict("  Cut  the bread. ", "cut the bread") == (1.0, 1.0)
    assert single_strict("cut bread", "cut the bread") == (0.0, 1.0)


def test_missing_steps_count_only_when_strict():
    labels = ["wipe", "cut the bread", "wipe"]
    closest = Closest(labels)
    assert steps_reference("1. Wipe.", labels, closest) == (1.0, 1.0)
    assert steps_strict("1. Wipe.", labels) == (1.0, 3.0)
    assert steps_strict("1.wipe\n\n2) Cut the bread.\nStep 3: wipe\n4. wipe", labels) == (3.0, 3.0)
    assert steps_strict("", labels) == (0.0, 3.0)
    assert numbered("1. stir 2 eggs.\nadd 1. of them") == ["stir 2 eggs.", "add 1. of them"]


def test_free_answers_ignore_case_and_punctuation():
    assert free_reference("Yes, it is!", "yes it is") == (1.0, 1.0)
    assert free_reference("yes it is not", "yes it is") == (0.0, 1.0)


def test_strict_actions_are_those_of_the_taxonomy_alone():
    actions = Actions(["cut", "open"], ["knife", "pot"])
    assert actions.parse("1. Cut pots.", 3) == [(0, 1)] * 3
    assert actions.parse_strict("1. Cut pots.\n2. Open pot.", 3) == [(UNKNOWN, UNKNOWN), (1, 1)]
    assert actions.parse("nothing", 2) == [(0, 0)] * 2
    assert actions.parse_strict("", 2) == []
    assert [actions.action(pair) for pair in ((0, 0), (1, 1), (UNKNOWN, UNKNOWN))] == [0, 3, UNKNOWN]


def test_missing_actions_are_edits():
    assert edit_curve([[1]], [1, 2, 3, 4]).tolist() == [0, 1 / 2, 2 / 3, 3 / 4]
    assert edit_curve([[]], [1, 2]).tolist() == [1, 1]
    assert edit_curve([[9, 9], [2, 1]], [1, 2]).tolist() == [1, 1]
    assert edit_curve([[9, 9], [2, 1]], [1, 2], "damerau").tolist() == [1, 0.5]
    assert aued(np.array([0.0, 1.0, 1.0])) == 0.75
    assert aued(np.array([0.5])) == 0.5
    with pytest.raises(DataError, match="0 candidates"):
        edit_curve([], [1])
