"""gamma-MoD against the authors' code: one layer in training, in the published form."""

import pytest
import torch

import vtskip
from tests.golden.stacks import close, layer_outputs, load_routers, stock_model


@pytest.fixture
def layer(golden):
    """(item, model in training mode, handle, its layer outputs): rows up to the last vision row are routable."""
    item = golden("gamma_mod_layer")
    c = item.json["config"]
    model = stock_model(item, 1).train()
    spec = {
        "name": "gamma_mod",
        "keep": c["capacity"],
        "schedule": {"kind": "list", "layers": [0]},
        "text": "routed",
        "positions": "compact",
        "aux_weight": 1.0,
    }
    handle = vtskip.attach(model, spec)
    load_routers(model, item)
    outputs = layer_outputs(model)
    vision = torch.zeros(item.tensors["hidden_in"].shape[:2], dtype=torch.bool)
    routable = c["routable_prefix_rows"]
    vision[:, min(35, routable - 1) : routable] = True  # the release counts 35 rows before the image
    with handle.rows(vision):
        model(inputs_embeds=item.tensors["hidden_in"].float())
    return item, model, handle, outputs[0]


def test_rows_and_hidden_states(layer):
    item, _, handle, out = layer
    t, routable = item.tensors, item.json["config"]["routable_prefix_rows"]
    for b, kept in enumerate(handle.last_plans[0].attend.mask):
        kept = kept.nonzero().flatten()
        assert kept.tolist() == t["kept_indices"][b].tolist() and len(kept) == item.json["config"]["k"]
        below = kept[kept < routable]
        close(out[b, below], t[f"hidden_out_kept_rows_below_{routable}"][b])
        close(out[b, routable:], t["hidden_out_tail"][b])
        others = torch.ones(out.shape[1], dtype=torch.bool).index_fill(0, kept, False)
        assert torch.equal(out[b, others], t["hidden_in"][b, others].float())


def test_auxiliary_loss_and_its_gradient(layer):
    item, model, handle, _ = layer
    close(handle.aux_loss().reshape(1), item.tensors["aux_loss"], 1e-5)
    handle.aux_loss().backward()
    close(model.layers[0].vtskip.router.weight.grad, item.tensors["aux_loss_router_grad"], 1e-5)
