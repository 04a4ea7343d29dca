"""Cluster bootstrap: coverage, pairing, weights, and what a single cluster says."""

import numpy as np
import pytest

from vtskip.errors import DataError
from vtskip.eval.statistics import difference, estimate


def made(values, per_cluster=1):
    items = {f"i{k:03d}": (float(v), 1.0) for k, v in enumerate(values)}
    return items, {key: f"c{k // per_cluster}" for k, key in enumerate(items)}


def test_value_is_the_weighted_mean_and_counts_what_weighs():
    items = {"a": (3.0, 4.0), "b": (1.0, 1.0), "c": (0.0, 0.0)}
    found = estimate(items, {"a": "v", "b": "w", "c": "x"})
    assert (found.value, found.items, found.clusters) == (4 / 5, 2, 2)
    assert found.low <= found.value <= found.high


def test_interval_is_that_of_a_mean_of_independent_values():
    values = np.random.default_rng(0).normal(size=400)
    items, clusters = made(values)
    found = estimate(items, clusters)
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.2 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.2 * half)


def test_alike_items_of_one_cluster_are_not_many_items():
    values = np.repeat(np.random.default_rng(1).normal(size=50), 8)
    alone, clustered = estimate(*made(values)), estimate(*made(values, per_cluster=8))
    assert (clustered.items, clustered.clusters) == (400, 50)
    width = [e.high - e.low for e in (alone, clustered)]
    assert width[1] / width[0] == pytest.approx(8**0.5, rel=0.15)


def test_ninety_five_percent_of_intervals_hold_the_truth():
    random, held = np.random.default_rng(2), 0
    for trial in range(200):
        noise = np.repeat(random.normal(size=40), 3) + random.normal(size=120)
        found = estimate(*made(noise, per_cluster=3), seed=trial, draws=400)
        held += found.low <= 0 <= found.high
    assert 178 <= held <= 199


def test_pairs_cancel_what_both_share():
    random = np.random.default_rng(3)
    shared, gain = random.normal(scale=5, size=60), random.normal(0.5, 0.1, size=60)
    (ours, clusters), (theirs, _) = made(shared + gain), made(shared)
    found = difference(ours, theirs, clusters)
    assert found.value == pytest.approx(gain.mean())
    assert 0.4 < found.low < found.high < 0.6
    assert difference(theirs, ours, clusters).high == pytest.approx(-found.low)


def test_same_seed_same_interval_in_any_order():
    items, clusters = made(np.random.default_rng(4).normal(size=30), per_cluster=2)
    assert estimate(items, clusters) == estimate(dict(reversed(items.items())), clusters)
    assert estimate(items, clusters) != estimate(items, clusters, seed=1)


def test_one_cluster_or_nothing_has_no_interval():
    one = estimate(*made([1.0, 2.0], per_cluster=2))
    assert (one.value, one.low, one.high, one.clusters) == (1.5, None, None, 1)
    empty = estimate({"a": (0.0, 0.0)}, {"a": "v"})
    assert (empty.value, empty.low, empty.items, empty.clusters) == (None, None, 0, 0)
    with pytest.raises(DataError, match="first 'b'"):
        difference({"a": (1.0, 1.0)}, {"a": (1.0, 1.0), "b": (1.0, 1.0)}, {"a": "v", "b": "v"})
