"""Gather with norm and scatter with gain: Triton against the reference, results and gradients."""

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from vtskip.kernels import reference

# No shrinking: the interpreter is slow.
SETTINGS = settings(max_examples=8, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
DTYPES = [torch.float32, torch.float16]
case = dict(
    total=st.integers(1, 30), share=st.floats(0, 1), width=st.sampled_from([1, 8, 24, 40]), dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)  # fmt: skip


def compare(ours, plain, inputs, device):
    """Both against the reference in float64; the error may be twice that of the reference in the working type."""
    dtype = inputs[0].dtype

    def run(operation, kind):
        leaves = [t.to(device, kind if t.dtype == dtype else t.dtype).requires_grad_() for t in inputs]
        out = operation(*leaves)
        out = out if isinstance(out, tuple) else (out,)
        generator = torch.Generator().manual_seed(1)
        cotangents = [torch.randn(o.shape, generator=generator).to(dtype).to(device, o.dtype) for o in out]
        return [o.detach() for o in out] + list(torch.autograd.grad(out, leaves, cotangents))

    truth = run(plain, torch.float64)
    for a, b, t in zip(run(ours, dtype), run(plain, dtype), truth):
        assert a.dtype == b.dtype and a.shape == b.shape
        if t.numel():
            rounding = 2 * torch.finfo(dtype).eps * t.abs().max().clamp(min=1)
            assert (a - t).abs().max() <= 2 * (b - t).abs().max() + rounding


def rows_of(total, share, generator):
    return torch.randperm(total, generator=generator)[: int(share * total)].sort().values


@SETTINGS
@given(**case, offset=st.sampled_from([0.0, 1.0]))
def test_gather_norm(device, total, share, width, dtype, seed, offset):
    from vtskip.kernels.triton_rows import gather_norm

    generator = torch.Generator().manual_seed(seed)
    index = rows_of(total, share, generator).to(device)
    inputs = [
        torch.randn(total, width, generator=generator).to(dtype),
        torch.randn(width, generator=generator).to(dtype),
    ]
    # The reference widens to fp32 in every type; float64 inputs stay float64.
    compare(
        lambda x, w: gather_norm(x, index, w, 1e-6, offset),
        lambda x, w: reference.gather_norm(x, index, w, 1e-6, offset),
        inputs,
        device,
    )


@SETTINGS
@given(**case, with_gain=st.booleans())
def test_scatter_update(device, total, share, width, dtype, seed, with_gain):
    from vtskip.kernels.triton_rows import scatter_update

    generator = torch.Generator().manual_seed(seed)
    index = rows_of(total, share, generator).to(device)
    inputs = [torch.randn(n, width, generator=generator).to(dtype) for n in (total, len(index))]
    inputs += [torch.rand(len(index), generator=generator).to(dtype)] if with_gain else []
    compare(
        lambda base, delta, gain=None: scatter_update(base, index, delta, gain),
        lambda base, delta, gain=None: reference.scatter_update(base, index, delta, gain),
        inputs,
        device,
    )


def test_gradients_are_the_same_every_time(device):
    from vtskip.kernels.triton_rows import gather_norm

    x, w = torch.randn(50, 24, device=device, requires_grad=True), torch.randn(24, device=device, requires_grad=True)
    index = torch.arange(0, 50, 2, device=device)

    def gradients():
        rows, normed = gather_norm(x, index, w, 1e-6)
        return torch.autograd.grad((rows * normed).sum(), (x, w))

    first = gradients()
    assert all(torch.equal(a, b) for a, b in zip(first, gradients()))


@pytest.mark.parametrize("name", ["gather_norm", "scatter_update"])
def test_nothing_gathered_is_nothing_done(device, name):
    from vtskip.kernels import triton_rows

    x, none = torch.randn(4, 8, device=device, requires_grad=True), torch.empty(0, dtype=torch.long, device=device)
    if name == "gather_norm":
        out = triton_rows.gather_norm(x, none, torch.ones(8, device=device), 1e-6)[1]
        assert out.shape == (0, 8)
    else:
        out = triton_rows.scatter_update(x, none, x.new_empty(0, 8))
        assert torch.equal(out, x)
    out.sum().backward()
    assert x.grad is not None
