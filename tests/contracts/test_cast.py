"""An attached model that is cast to another dtype: its routers go with it."""

import pytest
import torch

import vtskip
from tests.methods_matrix import MATRIX
from tests.tiny import FAMILIES

TINY = FAMILIES["llava-llama"]


@pytest.mark.parametrize("row", MATRIX, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_model_cast_after_attach_runs_and_learns(row, dtype):
    model = TINY.model(torch.float32)
    vtskip.attach(model, row.spec)
    model.to(dtype)
    batch = TINY.batch(["long", "short", "text"], dtype=dtype)
    for cut in (batch, {**TINY.batch(["text"])}):
        with torch.inference_mode():
            out = model(**cut).logits
        assert out.dtype == dtype and out[cut["attention_mask"].bool()].isfinite().all()
    model.train()(**batch).logits[batch["attention_mask"].bool()].float().square().mean().backward()
    learned = [p.grad for n, p in model.named_parameters() if "vtskip" in n and p.grad is not None]
    assert all(g.dtype == dtype and g.isfinite().all() for g in learned)
    assert bool(learned) == any(True for n, _ in model.named_parameters() if "vtskip" in n)
