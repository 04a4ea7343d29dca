"""Which norms a kernel may take the place of, and that their numbers are theirs."""

import pytest
import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm

from vtskip.kernels import reference
from vtskip.models.norms import rms_of


class Centred(nn.RMSNorm):
    """Looks like an RMS norm and is none."""

    def forward(self, x):
        return super().forward(x - x.mean(-1, keepdim=True))


def filled(norm):
    nn.init.normal_(norm.weight)
    return norm


@pytest.mark.parametrize("cls", [LlamaRMSNorm, Gemma3RMSNorm, Qwen3VLTextRMSNorm, nn.RMSNorm])
def test_numbers_of_known_norms(cls):
    norm = filled(cls(16, eps=1e-3))
    rms = rms_of(norm, torch.float32)
    assert rms is not None and rms.offset == (1.0 if cls is Gemma3RMSNorm else 0.0) and rms.eps == 1e-3
    x = torch.randn(5, 16)
    normed = reference.gather_norm(x, torch.arange(5), *rms)[1]
    assert torch.allclose(normed, norm(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), Centred(8, eps=1e-6), nn.RMSNorm(8), nn.Identity()])
def test_others_are_called_themselves(norm):
    assert rms_of(norm, torch.float32) is None


def test_nobody_is_passed_over():
    norm = LlamaRMSNorm(8)
    assert rms_of(norm, torch.bfloat16) is None  # it would give fp32
    hook = norm.register_forward_hook(lambda *args: None)
    assert rms_of(norm, torch.float32) is None
    hook.remove()
    norm.forward = lambda x: x
    assert rms_of(norm, torch.float32) is None
    with torch.device("meta"):
        assert rms_of(LlamaRMSNorm(8), torch.float32) is None
