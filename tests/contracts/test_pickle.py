"""Copies of an attached model, by deepcopy and pickle: exact, with a handle of their own, and independent."""

import copy
import io
import pickle

import pytest
import torch

import vtskip
from tests.methods_matrix import MATRIX
from tests.tiny import FAMILIES
from vtskip.runtime.attach import attached

TINY = FAMILIES["llava-llama"]
METHODS = pytest.mark.parametrize("row", MATRIX, ids=str)


def by_torch(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


TWINS = pytest.mark.parametrize(
    "twin_of", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), by_torch], ids=["deepcopy", "pickle", "torch"]
)


def logits(model):
    with torch.no_grad():
        return model(**TINY.batch(["long", "short"], dtype=torch.float32)).logits


@METHODS
@TWINS
def test_twins_are_exact_and_independent(row, twin_of):
    """Taken before the first forward: transformers then puts hooks on every model that cannot be pickled."""
    model = TINY.model(torch.float32)
    vtskip.attach(model, row.spec)
    twin = twin_of(model)
    ours, theirs = attached(model), attached(twin)
    assert theirs is not ours and theirs.model is twin and theirs.method == ours.method
    expected = logits(model)
    before = ours.report()
    assert torch.equal(logits(twin), expected)
    assert theirs.report() == before == ours.report()
    for parameter in twin.get_decoder().parameters():
        parameter.data.zero_()
    assert torch.equal(logits(model), expected)
    theirs.detach()
    assert attached(twin) is None and attached(model) is ours
    assert torch.equal(logits(model), expected)


@METHODS
def test_copies_after_a_training_step(row):
    """Nothing of the step's graph stays behind: torch refuses to copy a tensor that has one."""
    model = TINY.model(torch.float32).train()
    handle = vtskip.attach(model, row.spec)
    batch = TINY.batch(["long", "short"], dtype=torch.float32)
    model(**batch, labels=batch["input_ids"]).loss.backward()
    twin = copy.deepcopy(model.eval())
    assert torch.equal(logits(twin), logits(model))
    state = pickle.loads(pickle.dumps(handle.state))
    assert state.forwards == handle.state.forwards and state.layers == handle.state.layers


def test_a_detached_twin_is_the_stock_model():
    model = TINY.model(torch.float32)
    stock = logits(model)
    vtskip.attach(model, "mod")
    twin = copy.deepcopy(model)
    attached(twin).detach()
    assert torch.equal(logits(twin), stock)
    assert list(twin.state_dict()) == list(TINY.model(torch.float32).state_dict())
