"""LTA: the curve of edit distances, its area, and actions from text."""

import numpy as np
import pytest

from vtskip.data.labels import class_words
from vtskip.eval.lta import Actions, aued, edit_curve


@pytest.mark.parametrize("edit", ["levenshtein", "damerau"])
def test_edit_distance_and_its_area(golden, edit):
    item = golden("lta_metrics")
    predictions, labels = item.tensors["predictions"].tolist(), item.tensors["labels"].tolist()
    curves = [edit_curve(p, y, edit) for p, y in zip(predictions, labels, strict=True)]
    curve = np.mean(curves, axis=0)
    if edit == "levenshtein":
        assert curve == pytest.approx(item.json["ED_curve"], abs=1e-9)
        assert curve[-1] == pytest.approx(item.json["ED_at_20"], abs=1e-9)
        assert np.mean([aued(c) for c in curves]) == pytest.approx(item.json["AUED"], abs=1e-9)
    elif "ED_at_20_with_adjacent_transpositions" in item.json.get("contrast", {}):
        assert curve[-1] == pytest.approx(item.json["contrast"]["ED_at_20_with_adjacent_transpositions"], abs=1e-9)


def test_actions_from_text(golden):
    parsing = golden("lta_metrics").json["parsing"]
    actions = Actions(*([class_words(name) for name in parsing[key]] for key in ("verbs", "nouns")))
    for case in parsing["cases"]:
        assert actions.parse(case["text"], case["num_actions"]) == [tuple(pair) for pair in case["ids"]], case["text"]
