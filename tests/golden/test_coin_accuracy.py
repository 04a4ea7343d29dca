"""COIN's accuracy: fuzzy match of single answers and of numbered step lists."""

import pytest

from vtskip.eval.answers import single_reference, steps_reference
from vtskip.eval.distance import Closest


def test_single_answers(golden):
    item = golden("coin_accuracy").json
    closest = Closest(item["categories"])
    items = item["single"]["items"]
    assert [closest(i["prediction"].lower().rstrip(".")) for i in items] == [i["closest_category"] for i in items]
    right = [single_reference(i["prediction"], i["label"], closest) for i in items]
    assert right == [(float(i["correct"]), 1.0) for i in items]
    accuracy = 100 * sum(r for r, _ in right) / len(right)
    assert accuracy == pytest.approx(item["single"]["accuracy"], abs=float(item["tolerance"]["accuracy"]))


def test_step_lists(golden):
    item = golden("coin_accuracy").json
    closest, lists = Closest(item["categories"]), item["procedure"]
    found = [steps_reference(i["prediction"], i["labels"], closest) for i in lists["items"]]
    assert found == [(float(sum(i["correct"])), float(i["compared_positions"])) for i in lists["items"]]
    right, counted = (sum(values) for values in zip(*found))
    assert (right, counted) == (lists["correct"], lists["counted"])
    accuracy = 100 * right / counted
    assert accuracy == pytest.approx(lists["accuracy"], abs=float(item["tolerance"]["accuracy"]))
    if "label_positions_total" in lists:
        assert sum(len(i["labels"]) for i in lists["items"]) == lists["label_positions_total"]
