"""Triton runs in its interpreter where no GPU is (`tests/conftest.py`)."""

import os

import pytest
import torch


@pytest.fixture(scope="session")
def device():
    pytest.importorskip("triton")
    assert torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
    return "cuda" if torch.cuda.is_available() and not os.environ.get("TRITON_INTERPRET") else "cpu"
