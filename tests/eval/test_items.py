"""Per-conversation counts add up to the metrics of the set."""

import math

import pytest

from tests.eval.test_metrics import ON_TIME, sample, silent, turn
from vtskip.eval import metrics
from vtskip.eval.items import stream_counts

SAMPLES = [
    sample(ON_TIME, silent(4, last=False, offered=3, appended=[False, True, False]), ON_TIME),
    sample(turn([True, False, True], [True, True, True, False, True]), uid="b", fps=4.0),
    sample(silent(2), uid="c"),
    sample(uid="no turns"),
    sample(turn([], [True, True, False, True, True], target=[]), uid="no frames"),
]


@pytest.mark.parametrize("chosen", [SAMPLES, SAMPLES[:1], SAMPLES[3:4], SAMPLES[1:]], ids=len)
def test_sums_over_conversations_are_the_metrics_of_all(chosen):
    counts = [stream_counts(s) for s in chosen]
    for flavour, whole in (("reference", metrics.reference(chosen)), ("strict", metrics.strict(chosen))):
        names = counts[0][flavour].keys()
        assert whole.keys() - names == ({"ppl_token"} if flavour == "strict" else set())
        for name in names:
            value, weight = (sum(c[flavour][name][k] for c in counts) for k in (0, 1))
            if name == "nll_token":  # the logarithm of a perplexity, which is no mean itself
                ppl = whole["ppl_token"]
                assert (math.exp(value / weight) if weight else None) == (None if ppl is None else pytest.approx(ppl))
                continue
            want = whole[name]
            assert (value / weight if weight else None) == (None if want is None else pytest.approx(want)), name
