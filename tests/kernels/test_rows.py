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
@given(**case, with_gain=st.booleans(), with_ok=st.booleans(), mode=st.sampled_from(["add", "write", "blend"]))
def test_scatter_update(device, total, share, width, dtype, seed, with_gain, with_ok, mode):
    from vtskip.kernels.triton_rows import scatter_update

    generator = torch.Generator().manual_seed(seed)
    index = rows_of(total, share, generator).to(device)
    inputs = [torch.randn(n, width, generator=generator).to(dtype) for n in (total, len(index))]
    inputs += [torch.rand(len(index), generator=generator).to(dtype)] if with_gain else []
    ok = (torch.rand(len(index), generator=generator) > 0.3).to(device) if with_ok else None
    compare(
        lambda base, rows, gain=None: scatter_update(base, index, rows, gain, mode, ok),
        lambda base, rows, gain=None: reference.scatter_update(base, index, rows, gain, mode, ok),
        inputs,
        device,
    )


def test_scatter_modes_are_their_formulas():
    base, rows = torch.randn(5, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    index, gain = torch.tensor([4, 1]), torch.tensor([0.5, 2.0], dtype=torch.float64)
    for mode, expected in {
        "add": base[index] + gain[:, None] * rows,
        "write": gain[:, None] * rows,
        "blend": (1 - gain[:, None]) * base[index] + gain[:, None] * rows,
    }.items():
        out = reference.scatter_update(base, index, rows, gain, mode, torch.tensor([True, False]))
        assert torch.allclose(out[4], expected[0]) and torch.equal(out[:4], base[:4])


def test_any_number_of_tensors_move_at_once(device):
    from vtskip.kernels import triton_rows

    generator = torch.Generator().manual_seed(0)
    index = rows_of(20, 0.4, generator).to(device)
    hidden, gain = torch.randn(20, 6, 4, generator=generator), torch.rand(20, generator=generator)
    shared, place = torch.randn(10, 3, generator=generator).half(), torch.arange(20)
    tensors = [t.to(device) for t in (hidden, gain, shared, place)]
    ours, plain = triton_rows.gather_rows(index, *tensors), reference.gather_rows(index, *tensors)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(ours, plain))
    bases, rows = tensors[:2], [t * 2 for t in plain[:2]]
    rows[0] = rows[0].half()  # written in the base's type
    ours, plain = triton_rows.scatter_rows(index, bases, rows), reference.scatter_rows(index, bases, rows)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(ours, plain))


@pytest.mark.parametrize("operation", ["gather", "scatter"])
def test_gradients_of_moves(device, operation):
    from vtskip.kernels import triton_rows

    index = torch.tensor([1, 2, 7], device=device)
    sizes = (9, 9) if operation == "gather" else (9, 9, 3, 3)
    leaves = [torch.randn(n, w, device=device, requires_grad=True) for n, w in zip(sizes, (4, 2, 4, 2))]

    def gradients(rows):
        out = rows.gather_rows(index, *leaves) if len(leaves) == 2 else rows.scatter_rows(index, leaves[:2], leaves[2:])
        return torch.autograd.grad(sum((t**3).sum() for t in out), leaves)

    assert all(torch.equal(a, b) for a, b in zip(gradients(triton_rows), gradients(reference)))


@SETTINGS
@given(
    sizes=st.lists(st.integers(1, 40), max_size=6), dtype=st.sampled_from([*DTYPES, torch.float64]),
    levels=st.sampled_from([1, 3, 1000]), odd=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_ranks_within_groups(device, sizes, dtype, levels, odd, seed):
    from vtskip.kernels.triton_topk import group_ranks

    generator = torch.Generator().manual_seed(seed)
    group = torch.full((2, 150), -1)
    for g, size in enumerate(sizes):
        group[0, sum(sizes[:g]) // 2 + g : sum(sizes[:g]) // 2 + g + size // 2] = g
        group[1, rows_of(150, 0.3, generator)] = g  # groups may interleave
    score = (torch.rand(2, 150, generator=generator) * levels).floor().to(dtype)
    if odd:
        score[:, ::7] = torch.nan
    score, group = score.to(device), group.to(device)
    expected = reference.group_ranks(score, group)
    assert torch.equal(group_ranks(score, group), expected)
    for g in set(group.unique().tolist()) - {-1}:  # the reference is a stable sort
        for s, e, inside in zip(score, expected, group == g):
            order = s[inside].argsort(descending=True, stable=True)
            assert torch.equal(e[inside][order].long(), torch.arange(len(order), device=device))


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
