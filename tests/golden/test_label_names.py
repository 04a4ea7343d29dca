"""Readable names of tasks, steps, verbs and nouns."""

import pytest

from vtskip.data.labels import class_words, step_words, task_words

RULES = {"tasks": task_words, "steps": step_words, "words": class_words}


@pytest.mark.parametrize("kind", RULES)
def test_names_equal_the_reference_s(golden, kind):
    cases = golden("label_names").json[kind]
    assert [(case["in"], RULES[kind](case["in"])) for case in cases] == [(case["in"], case["out"]) for case in cases]
