"""Dynamic-LLaVA against the authors' code: both predictors, what they keep, and attention under a policy."""

import pytest
import torch

from tests.golden.stacks import close
from vtskip.methods.dynamic_llava import DynamicLlava, Predictor, certainty
from vtskip.plan import DecoderShape, RowMap
from vtskip.runtime import weighted

OURS = {
    "vision.down_mlp.0": "image.into.0",
    "vision.down_mlp.1": "image.into.1",
    "vision.output_mlp.": "image.out.",
    "vision.transformer.": "image.blocks.",
    ".attn.": ".",
    ".mlp.": ".",
    "text.output_mlp.0": "text.0.0",
    "text.output_mlp.1": "text.0.1",
    "text.output_mlp.3": "text.1.0",
    "text.output_mlp.5": "text.1.2",
    "text.output_mlp.7": "text.1.4",
}


def renamed(name: str) -> str:
    for theirs, ours in OURS.items():
        name = name.replace(theirs, ours)
    return name


@pytest.fixture
def item(golden):
    return golden("dynamic_llava")


def method_of(item) -> DynamicLlava:
    c = item.json["config"]
    sizes = {"width": c["d_model"], "heads": c["heads"], "ffn": c["ffn"], "blocks": c["blocks"]}
    return DynamicLlava(keep=c["vision_keep_rate"], layer=0, **sizes)


def load(predictor: Predictor, item) -> Predictor:
    weights = {renamed(k.removeprefix("weights.")): v for k, v in item.tensors.items() if k.startswith("weights.")}
    predictor.load_state_dict(weights)
    return predictor.eval()


@torch.no_grad()
def test_predictors(item):
    t, predictor = item.tensors, load(Predictor(method_of(item), item.json["config"]["hidden"]), item)
    x = t["vision_hidden"]
    real = torch.ones(x.shape[:2], dtype=torch.bool)
    close(predictor(x, real), t["vision_logits"], 2e-5)
    text = predictor(t["text_hidden"])
    close(text, t["text_logits"], 2e-5)
    assert torch.equal(certainty(text) > 0, t["text_keep"])
    fillers = torch.nn.functional.pad(x, (0, 0, 0, 3), value=7.0)
    close(predictor(fillers, torch.nn.functional.pad(real, (0, 3)))[:, :-3], t["vision_logits"], 2e-5)


@torch.no_grad()
def test_selection(item):
    """The samples with text around their rows, and more on the left of the second one."""
    t, c = item.tensors, item.json["config"]
    shape = DecoderShape(layers=2, hidden=c["hidden"], ffn=8, heads=2, kv_heads=2, head_dim=8, vocab=8)
    first, later = (planner.eval() for planner in method_of(item).planners(shape))
    load(first.predictor, item)
    hidden, vision = torch.randn(2, c["rows"] + 5, c["hidden"]), torch.zeros(2, c["rows"] + 5, dtype=torch.bool)
    for b, start in enumerate((2, 4)):
        hidden[b, start : start + c["rows"]] = t["vision_hidden"][b]
        vision[b, start : start + c["rows"]] = True
    rows = RowMap.build(vision.numpy())
    plan = first(rows, hidden)
    kept = plan.attend.mask & rows.vision
    assert torch.equal(rows.offset[kept].view(2, -1), t["vision_keep_indices"])
    assert plan.attend.counts == (5 + c["k"],) * 2 and later(rows, hidden).attend is plan.attend


@pytest.mark.parametrize("block", [2**26, 2 * 35 * 6])
def test_policy_attention(item, monkeypatch, block):
    """In one block and in blocks of six queries. The release's 1e-6 for hidden keys is below the tolerance."""
    monkeypatch.setattr(weighted, "BLOCK", block)
    t = item.tensors
    q, k, v = (t[f"policy.{name}"] for name in ("query", "key", "value"))
    n = q.shape[2]
    causal, itself = torch.ones(1, 1, n, n, dtype=torch.bool).tril(), torch.eye(n, dtype=torch.bool)[None]
    out = weighted.weighted_attention(q, k, v, causal, itself, t["policy.keep"], q.shape[3] ** -0.5)
    close(out.transpose(1, 2), t["policy.attention_out"], 1e-5)
