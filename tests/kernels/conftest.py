"""Triton runs in its interpreter where no GPU is: decided before any kernel module is imported."""

import os
import sys

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    assert "vtskip.kernels.triton_attention" not in sys.modules


@pytest.fixture(scope="session")
def device():
    pytest.importorskip("triton")
    return "cuda" if torch.cuda.is_available() else "cpu"
