"""``gathered_attention``: ranges from positions, the reference against torch's attention, Triton against the reference."""

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from vtskip.kernels import reference

# No shrinking: the interpreter is slow.
SETTINGS = settings(max_examples=8, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])


def rows(lens_q, lens_k, window=None, seed=0):
    """Random increasing positions, other ones for queries and keys, and their ranges."""
    generator = torch.Generator().manual_seed(seed)
    places = [a + b + 3 for a, b in zip(lens_q, lens_k)]
    q_pos, k_pos = (
        torch.cat([torch.randperm(p, generator=generator)[:n].sort().values for n, p in zip(lens, places)])
        for lens in (lens_q, lens_k)
    )
    cu_q, cu_k = (torch.tensor([0, *lens]).cumsum(0) for lens in (lens_q, lens_k))
    return q_pos, k_pos, *reference.visible_ranges(q_pos, k_pos, cu_q, cu_k, window)


def visible(lens_q, lens_k, q_pos, k_pos, window):
    """The mask itself, written from the rule."""
    sample_q, sample_k = (torch.repeat_interleave(torch.arange(len(n)), torch.tensor(n)) for n in (lens_q, lens_k))
    mask = (sample_q[:, None] == sample_k) & (k_pos <= q_pos[:, None])
    return mask if window is None else mask & (k_pos > q_pos[:, None] - window)


samples = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 40)), min_size=1, max_size=3)


@SETTINGS
@given(lens=samples, window=st.none() | st.integers(1, 12), seed=st.integers(0, 99))
def test_ranges_are_the_mask(lens, window, seed):
    lens_q, lens_k = zip(*lens)
    q_pos, k_pos, lo, hi = rows(lens_q, lens_k, window, seed)
    place = torch.arange(len(k_pos))
    assert torch.equal((place >= lo[:, None]) & (place < hi[:, None]), visible(lens_q, lens_k, q_pos, k_pos, window))
    assert (lo.diff() >= 0).all() and (hi.diff() >= 0).all()


def test_reference_is_attention():
    lens_q, lens_k = (5, 9), (12, 9)
    q_pos, k_pos, lo, hi = rows(lens_q, lens_k)
    q, k, v = (torch.randn(n, h, 8, dtype=torch.float64) for n, h in ((14, 4), (21, 2), (21, 2)))
    mask = visible(lens_q, lens_k, q_pos, k_pos, None)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(t.transpose(0, 1)[None] for t in (q, k, v)), attn_mask=mask, scale=0.3, enable_gqa=True
    )
    seen = mask.any(1)
    ours = reference.gathered_attention(q, k, v, lo, hi, 0.3)
    assert (ours - expected[0].transpose(0, 1))[seen].abs().max() < 1e-12
    assert not ours[~seen].any()


def errors(dtype, device, lens, window, use_ok, heads, kv_heads, d, seed):
    """Largest error of Triton and of the reference in the working type, against the reference in float64,
    and the rounding that is left to chance; per result."""
    from vtskip.kernels.triton_attention import gathered_attention

    lens_q, lens_k = zip(*lens)
    q_pos, k_pos, lo, hi = rows(lens_q, lens_k, window, seed)
    lo, hi = lo.to(device), hi.to(device)
    generator = torch.Generator().manual_seed(seed)
    shapes = [(len(q_pos), heads), (len(k_pos), kv_heads), (len(k_pos), kv_heads), (len(q_pos), heads)]
    *qkv, cotangent = (torch.randn(n, h, d, generator=generator).to(device, dtype) for n, h in shapes)
    ok = (torch.rand(len(k_pos), generator=generator) > 0.2).to(device) if use_ok else None

    def run(attend, kind):
        leaves = [t.to(kind).requires_grad_() for t in qkv]
        out = attend(*leaves, lo, hi, d**-0.5, ok)
        return [out.detach(), *torch.autograd.grad(out, leaves, cotangent.to(kind))]

    truth = run(reference.gathered_attention, torch.float64)
    ours, plain = run(gathered_attention, dtype), run(reference.gathered_attention, dtype)
    # What rounding may leave where the reference has no error by luck (a single key): sums of products of this size.
    largest = [max(1.0, float(t.detach().abs().max())) if t.numel() else 1.0 for t in (*qkv, cotangent)]
    rounding = torch.finfo(dtype).eps * d**0.5 * max(largest[:2]) * largest[2] * largest[3]
    return [
        (float((a - t).abs().max()), float((b - t).abs().max()), rounding)
        for a, b, t in zip(ours, plain, truth)
        if t.numel()
    ]


@SETTINGS
@given(
    lens=samples,
    window=st.none() | st.integers(1, 12),
    use_ok=st.booleans(),
    heads=st.sampled_from([(2, 2), (4, 2), (3, 1)]),
    d=st.sampled_from([8, 16, 24]),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    seed=st.integers(0, 99),
)
def test_triton_is_the_reference(device, lens, window, use_ok, heads, d, dtype, seed):
    for ours, plain, rounding in errors(dtype, device, lens, window, use_ok, *heads, d, seed):
        assert ours <= 2 * plain + rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_triton_over_several_blocks(device, dtype):
    for ours, plain, rounding in errors(dtype, device, [(150, 70), (20, 130)], None, True, 2, 1, 16, 0):
        assert ours <= 2 * plain + rounding


def test_bf16_is_computed_in_another_type_by_the_interpreter(device):
    for ours, plain, rounding in errors(torch.bfloat16, device, [(20, 40)], None, False, 2, 1, 16, 0):
        assert ours <= 2 * plain + rounding


@pytest.mark.parametrize("splits", [1, 3, 8])
def test_decode_reads_a_padded_cache_in_place(device, splits):
    from vtskip.kernels.triton_attention import decode_attention

    batch, heads, kv_heads, slots, d = 3, 4, 2, 50, 16
    q, ok = torch.randn(batch, heads, d), torch.rand(batch, slots) > 0.3
    k, v = (torch.randn(batch, kv_heads, slots + 14, d)[:, :, :slots] for _ in "kv")  # room to grow behind the slots
    length = torch.tensor([50, 20, 1])
    ok[2, 0] = True
    mask = (ok & (torch.arange(slots) < length[:, None]))[:, None, None]
    expected = torch.nn.functional.scaled_dot_product_attention(
        q[:, :, None], k, v, attn_mask=mask, scale=0.25, enable_gqa=True
    )
    inputs = [t.to(device) for t in (q, k, v, length)]
    ours = decode_attention(*inputs, 0.25, ok.to(device), splits=splits)
    assert (ours.cpu() - expected[:, :, 0]).abs().max() <= 8 * torch.finfo(torch.float32).eps * expected.abs().max()
