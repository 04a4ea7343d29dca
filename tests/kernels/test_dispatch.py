"""Packed attention: every kernel that runs here against the reference, and the choice among kernels."""

import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from vtskip.kernels.dispatch import PackedRows, packed_attention

SETTINGS = settings(max_examples=15, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
D, SCALE = 16, 0.25


def positions(lens, generator, gaps=True):
    places = [torch.randperm(n + 5, generator=generator)[:n].sort().values if gaps else torch.arange(n) for n in lens]
    return torch.cat(places) if places else torch.empty(0, dtype=torch.long)


def make_rows(lens_q, lens_k, same, use_ok, seed):
    generator = torch.Generator().manual_seed(seed)
    k_pos = positions(lens_k, generator)
    key_ok = torch.rand(len(k_pos), generator=generator) > 0.3 if use_ok else None
    if same:
        return PackedRows(lens_k, lens_k, k_pos, k_pos, key_ok, same_rows=True)
    q_pos = positions(lens_q, generator)
    if key_ok is not None:
        k_pos = torch.where(key_ok, k_pos, torch.randint(0, 99, k_pos.shape, generator=generator))
    return PackedRows(lens_q, lens_k, q_pos, k_pos, key_ok)


def tensors(rows, heads, kv_heads, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows.cu_q[-1], heads), (rows.cu_k[-1], kv_heads), (rows.cu_k[-1], kv_heads))
    return [torch.randn(n, h, D, generator=generator, dtype=torch.float64).to(dtype) for n, h in shapes]


def by_mask(q, k, v, rows, window, softcap):
    """Written from the rule over the whole batch, from the rows' own (unsorted) description."""
    group = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(group, 1) for t in (k, v))
    sample_q, sample_k = (
        torch.repeat_interleave(torch.arange(len(n)), torch.tensor(n)) for n in (rows.lens_q, rows.lens_k)
    )
    seen = (sample_q[:, None] == sample_k) & (rows.k_pos <= rows.q_pos[:, None])
    if window is not None:
        seen &= rows.k_pos > rows.q_pos[:, None] - window
    if rows.key_ok is not None:
        seen &= rows.key_ok
    logits = torch.einsum("qhd,khd->hqk", q, k) * SCALE
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    weights = logits.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0)
    return torch.einsum("hqk,khd->qhd", weights, v)


lens = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 20)), min_size=1, max_size=3)


@SETTINGS
@given(
    lens=lens,
    same=st.booleans(),
    use_ok=st.booleans(),
    window=st.none() | st.integers(1, 12),
    kernel=st.sampled_from(["sdpa", "flex", "reference"]),
    seed=st.integers(0, 99),
)
def test_kernels_are_the_rule(lens, same, use_ok, window, kernel, seed):
    rows = make_rows(*zip(*lens), same, use_ok, seed)
    q, k, v = tensors(rows, 4, 2)
    out = packed_attention(q, k, v, rows, scale=SCALE, window=window, kernel=kernel)
    expected = by_mask(q, k, v, rows, window, None)
    assert out.shape == expected.shape and torch.allclose(out, expected, rtol=0, atol=1e-13)


def test_gradients_of_the_cpu_path():
    rows = make_rows((5, 0, 7), (9, 3, 7), False, True, 0)
    leaves = [t.requires_grad_() for t in tensors(rows, 4, 2)]
    ours = torch.autograd.grad(packed_attention(*leaves, rows, scale=SCALE).square().sum(), leaves)
    truth = torch.autograd.grad(by_mask(*leaves, rows, None, None).square().sum(), leaves)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(ours, truth))
