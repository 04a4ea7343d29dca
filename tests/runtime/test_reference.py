"""Skipping equals masking: every method on every family against the masked dense reference, in logits and gradients."""

import copy

import pytest
import torch

import vtskip
from tests.methods_matrix import MATRIX
from tests.reference import masked, rows_of, shape_for
from tests.tiny import FAMILIES
from vtskip.methods import get_method

KINDS = ["long", "short", "text"]
# RMSNorm computes in float32 whatever the model's type, so gradients of equal sums may differ by that rounding.
GRADIENT = 2**-20


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def model(family):
    return family.model()


def loss_and_gradients(model, batch, planners, auxiliary):
    """Logits, and gradients by parameter (planners' by ``layer.name``) of a fixed random sum of the valid ones and the
    auxiliary losses."""
    logits = model(**batch, use_cache=False).logits
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(logits.shape, generator=generator, dtype=torch.float64).to(logits.dtype)
    loss = (logits * weight * batch["attention_mask"][..., None]).sum()
    named = [(n, p) for n, p in model.named_parameters() if ".vtskip." not in n]
    named += [(f"{i}.{n}", p) for i, planner in enumerate(planners) if planner for n, p in planner.named_parameters()]
    gradients = torch.autograd.grad(loss + sum(auxiliary()), [p for _, p in named], allow_unused=True)
    return logits.detach(), {n: g for (n, _), g in zip(named, gradients) if g is not None}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("row", MATRIX, ids=str)
def test_skipping_equals_masking(model, family, row, side):
    batch, rounding = family.batch(KINDS, side), max(family.tolerance, GRADIENT)
    with vtskip.attach(model, row.spec) as handle:
        planners = [getattr(layer, "vtskip", None) for layer in model.get_decoder().layers]
        for planner in filter(None, planners):
            for parameter in planner.parameters():  # zero routers decide nothing
                parameter.data.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
        weights = [copy.deepcopy(p.state_dict()) if p else None for p in planners]
        logits, gradients = loss_and_gradients(model, batch, planners, lambda: handle.state.aux)
        assert min(layer.kept_ffn for layer in handle.report().layers) < 1 or row.name.startswith("mindskip")
    again = get_method(row.spec).planners(shape_for(model))
    for planner, state in zip(again, weights):
        if planner:
            planner.to(torch.promote_types(family.dtype, torch.float32)).train(model.training).load_state_dict(state)
    with masked(model, again, rows_of(family, KINDS, side)) as losses:
        expected, expected_gradients = loss_and_gradients(model, batch, again, lambda: losses)
    valid = batch["attention_mask"].bool()
    assert (logits - expected)[valid].abs().max() <= family.tolerance * max(1.0, float(expected.abs().max()))
    assert gradients.keys() <= expected_gradients.keys()
    largest = max(float(g.abs().max()) for g in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        ours = gradients.get(name, torch.zeros_like(gradient))  # what did not run has none, where masking gives zeros
        # In float32 a small gradient is a difference of large terms: it is as exact as those.
        scale = gradient.abs().max().clamp(min=1e-3) if family.dtype == torch.float64 else largest
        scale = scale * 8 if name[0].isdigit() else scale  # routers': sums over all rows, of terms that cancel
        assert (ours - gradient).abs().max() <= rounding * scale, name
