"""Batches: every sample once per epoch, the same number of steps on every process and in every epoch, within the budget."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtskip.data.types import Sample
from vtskip.errors import ConfigError
from vtskip.train.options import Sampling
from vtskip.train.sampling import Batches, modality

KINDS = ("image", "text", "video")
SETTINGS = [
    {},
    {"group": ["length"]},
    {"group": ["modality"]},
    {"group": ["length", "modality"]},
    {"tokens": 500},
    {"tokens": 500, "group": ["modality"]},
]


def made(lengths, size, options, processes=1, seed=0):
    kinds = [KINDS[n % 3] for n in range(len(lengths))]
    given = (Sampling(**options), seed, lengths, kinds, None)
    return [Batches(len(lengths), size, *given, rank, processes) for rank in range(processes)]


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 500), min_size=8, max_size=60),
    size=st.integers(1, 5),
    processes=st.integers(1, 3),
    options=st.sampled_from(SETTINGS),
    seed=st.integers(0, 3),
)
def test_every_sample_once_in_equal_steps(lengths, size, processes, options, seed):
    ranks = made(lengths, size, options, processes, seed)
    steps = {len(b) for b in ranks}
    assert len(steps) == 1
    for epoch in range(3):
        seen = []
        for batches in ranks:
            batches.set_epoch(epoch)
            own = list(batches)
            assert len(own) in steps and all(own)
            seen += [i for batch in own for i in batch]
            if "tokens" in options:
                assert all(len(b) * max(lengths[i] for i in b) <= 500 for b in own)
            else:
                assert max(map(len, own)) <= size
        assert set(seen) == set(range(len(lengths)))
        parts = 3 if "modality" in options.get("group", []) else 1
        twice = len(seen) - len(lengths)
        assert twice <= parts * (processes - 1)
        if size > 1 and "tokens" not in options and len(lengths) >= 2 * processes * parts + 2:
            assert twice == 0  # batches of one cannot be halved


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_a_function_of_seed_and_epoch(options):
    lengths = [random.Random(n).randrange(1, 300) for n in range(100)]

    def epochs(seed):
        batches = made(lengths, 4, options, seed=seed)[0]
        found = []
        for epoch in (0, 1, 0):
            batches.set_epoch(epoch)
            found.append(list(batches))
        return found

    first, second, again = epochs(0)
    assert first == again and first != second and epochs(0) == [first, second, first] and epochs(1)[0] != first


def test_without_groups_the_order_is_that_of_the_seeded_permutation():
    import torch

    order = torch.randperm(10, generator=torch.Generator().manual_seed(5)).tolist()
    batches = made([1] * 10, 4, {}, seed=3)[0]
    batches.set_epoch(2)
    assert [i for batch in batches for i in batch] == order
    dealt = made([1] * 10, 2, {}, processes=2, seed=3)
    for b in dealt:
        b.set_epoch(2)
    in_turn = [i for pair in zip(*dealt) for batch in pair for i in batch]
    assert sorted(in_turn) == list(range(10)) and in_turn[:8] == order[:8]


def padding(lengths, batches):
    padded = sum(len(b) * max(lengths[i] for i in b) for b in batches)
    return 1 - sum(lengths) / padded


def test_groups_save_padding_and_keep_modalities_apart():
    lengths = [random.Random(n).randrange(10, 1000) for n in range(600)]
    plain, grouped, apart = (list(made(lengths, 4, o)[0]) for o in SETTINGS[:3])
    packed = list(Batches(600, 1, Sampling(tokens=4000), 0, lengths))
    assert padding(lengths, plain) > 0.3 > 0.02 > padding(lengths, grouped)
    assert padding(lengths, packed) < 0.1
    assert max(len(b) for b in packed) > 20 and min(len(b) for b in packed) <= 4  # many short, few long ones
    assert all(len({n % 3 for n in batch}) == 1 for batch in apart)
    assert any(len({n % 3 for n in batch}) > 1 for batch in plain)
    heaviest = max(range(len(packed)), key=lambda i: len(packed[i]) * max(lengths[n] for n in packed[i]))
    assert heaviest == 0


def test_the_batches_of_a_round_are_alike():
    lengths = [random.Random(n).randrange(10, 1000) for n in range(600)]
    ranks = made(lengths, 4, {"group": ["length", "modality"]}, processes=2)
    for one, other in zip(*ranks):
        assert {n % 3 for n in one} == {n % 3 for n in other}
        assert abs(max(lengths[n] for n in one) - max(lengths[n] for n in other)) < 60


def test_a_sample_over_the_budget_is_named():
    with pytest.raises(ConfigError, match=r"sampling.tokens 100: sample 'c' alone has 101; accepted: at least"):
        Batches(3, 1, Sampling(tokens=100), 0, [5, 100, 101], names="abc")


def test_modality_of_a_sample(tmp_path):
    shows = [{"role": "stream", "num_frames": 1, "learn": False}]
    assert modality(Sample("a", Path("a.mp4"), 1, [], [])) == "text"
    assert modality(Sample("a", Path("a.mp4"), 1, [0], shows)) == "video"
    assert modality(Sample("a", Path("a.PNG"), 1, [0], shows)) == "image"
