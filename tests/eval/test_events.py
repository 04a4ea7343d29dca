"""Timed replies against timed texts: segments, forced and one-to-one pairs, caption scores."""

import sys
from itertools import combinations, permutations
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from vtskip.config import parse
from vtskip.errors import ConfigError
from vtskip.eval import EvalConfig, run
from vtskip.eval.events import (
    caption_scores,
    corpus_scores,
    forced_pairs,
    giou,
    iou,
    matched_pairs,
    segment_scores,
    segments,
)


def test_segments_end_at_their_times():
    assert segments([2.0, 5.0]) == [(0.0, 2.0), (2.0, 5.0)]
    assert segments([4.0, 3.0], start=1.0) == [(1.0, 4.0), (3.0, 4.0)]


def test_overlap_of_segments():
    assert iou((0, 2), (1, 3)) == pytest.approx(1 / 3)
    assert giou((0, 2), (1, 3)) == pytest.approx(1 / 3)
    assert giou((0, 1), (3, 4)) == pytest.approx(-0.5)
    assert iou((1, 1), (1, 1)) == giou((1, 1), (1, 1)) == 0.0


def test_one_reply_may_match_many_references_in_the_reference():
    scores = segment_scores([2.0, 2.4, 6.0], [2.2, 6.0])
    assert scores == {"precision": 2 / 3, "recall": 1.0, "f1": pytest.approx(0.8)}
    assert segment_scores([], [1.0]) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_forced_pairs_give_every_reference_a_reply():
    assert forced_pairs([10.0], [1.0, 2.0]) == [(0, 0), (0, 1)]
    assert forced_pairs([1.0, 5.0], [1.1, 4.8]) == [(0, 0), (1, 1)]
    assert forced_pairs([], [1.0]) == []


def most_pairs(said, due, tolerance):
    """By trying everything."""
    few, many = sorted((said, due), key=len)
    for size in range(len(few), 0, -1):
        for a in combinations(few, size):
            if any(all(abs(x - y) <= tolerance for x, y in zip(a, b)) for b in permutations(many, size)):
                return size
    return 0


def test_pairs_are_one_to_one_and_as_many_as_possible():
    random = np.random.default_rng(0)
    for _ in range(60):
        said, due = (sorted(random.integers(0, 12, random.integers(0, 6)) / 2) for _ in range(2))
        pairs = matched_pairs(said, due, 1.0)
        assert all(abs(said[i] - due[j]) <= 1.0 for i, j in pairs)
        assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
        assert len(pairs) == most_pairs(said, due, 1.0)


def test_rouge_l_is_rouge_score_s():
    pytest.importorskip("rouge_score", reason="rouge-score is not installed (pip install 'vtskip[captions]')")
    (score,) = caption_scores(["C cuts the bread."], ["C cuts the red bread."], ["rouge_l"])
    assert score["rouge_l"] == pytest.approx(100 * 2 * 1 * 0.8 / 1.8)  # 4 of 4 and 4 of 5 words in order
    assert "rouge_l" not in caption_scores(["a"], ["a"])[0]


def test_rouge_l_in_a_run(eval_config, monkeypatch, tmp_path):
    """With a stand-in of the package's one class, and without the package."""
    narration = {"task": "ego4d_narration_rollout"}
    values = {k: v for k, v in eval_config.items() if k != "rows"} | {"tasks": [narration], "captions": ["rouge_l"]}
    config = parse(EvalConfig, values | {"rows": []}, "test")
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(ConfigError, match=r"rouge_l.*vtskip\[captions\]"):
        run(config)
    package, module = ModuleType("rouge_score"), ModuleType("rouge_score.rouge_scorer")
    module.RougeScorer = lambda names: SimpleNamespace(
        score=lambda target, prediction: {names[0]: SimpleNamespace(fmeasure=0.25)}
    )
    monkeypatch.setitem(sys.modules, "rouge_score", package)
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", module)
    scores = run(config)["tasks"]["ego4d_narration_rollout"]["rows"]["model"]
    assert scores["reference"]["rouge_l"]["value"] == 25.0
    assert "rouge_l" in scores["strict"]


def test_caption_scores_are_sacrebleu_s():
    import sacrebleu

    pairs = (["C cuts the bread.", "wipe"], ["C cuts the red bread.", "Wipe."])
    found = caption_scores(*pairs)
    assert found[0]["bleu"] == pytest.approx(sacrebleu.sentence_bleu(pairs[0][0], [pairs[1][0]]).score)
    assert found[0]["chrf"] == pytest.approx(sacrebleu.sentence_chrf(pairs[0][0], [pairs[1][0]]).score)
    assert [f["exact"] for f in found] == [0.0, 100.0]
    assert corpus_scores(*pairs)["corpus_bleu"] == pytest.approx(sacrebleu.corpus_bleu(pairs[0], [pairs[1]]).score)
    assert corpus_scores([], []) == {"corpus_bleu": None, "corpus_chrf": None}
