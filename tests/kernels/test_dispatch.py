"""Packed attention: every kernel that runs here against the reference, and the choice among kernels."""

import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests import flash_standin
from vtskip.errors import ConfigError
from vtskip.kernels import causal_blocks, choice, dispatch
from vtskip.kernels.dispatch import PackedRows, decode_attention, packed_attention
from vtskip.kernels.packing import segments_of

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


@pytest.fixture
def flash(monkeypatch):
    """The flash kernels' places taken by stand-ins of the same semantics, on a CPU; what they were called with."""
    calls = []

    def standin(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, window, softcap):
        calls.append((max_q, max_k))
        assert softcap is None
        size = (-1, -1) if window is None else (window - 1, 0)
        return flash_standin.flash_attn_varlen_func(
            q, k, v, cu_q, cu_k, max_q, max_k, softmax_scale=scale, causal=True, window_size=size
        )

    monkeypatch.setattr(dispatch.flash, "flash_varlen", standin)
    monkeypatch.setitem(choice.TABLE["attention"], "flash", lambda call: "" if call.order else "other rows")
    return calls


def row_sets(seed):
    """Host masks of a batch: queries are among the keys, and a run of text stands before and after vision rows."""
    generator = np.random.default_rng(seed)
    keys = generator.random((3, 24)) > 0.2
    queries = keys.copy()
    queries[:, 4:15] = False
    keys[2], queries[2] = queries[2], queries[2]
    queries[1, 17], queries[0, 20], keys[0, 19:21] = (
        False,
        True,
        False,
    )  # a key between two queries, a query without one
    keys[1, 16:19] = queries[1, [16, 18]] = queries[0, 19] = True
    return queries, keys


@pytest.mark.parametrize("past", [None, (0, 3, 5)])
def test_segments_are_the_row_sets(flash, past, monkeypatch):
    monkeypatch.setattr(dispatch.flash, "few_segments", lambda rows: True)
    queries, keys = row_sets(0)
    segments = segments_of(queries, keys, past)
    before = past or (0, 0, 0)
    q_pos, k_pos = [], []
    for b in range(3):
        q_pos.append(torch.tensor(before[b] + np.flatnonzero(queries[b])))
        k_pos += [torch.arange(before[b]), torch.tensor(before[b] + np.flatnonzero(keys[b]))]
    lens_k = [int(n) + p for n, p in zip(keys.sum(1), before)]
    rows = PackedRows(queries.sum(1).tolist(), lens_k, torch.cat(q_pos), torch.cat(k_pos), segments=segments)
    leaves = [t.requires_grad_() for t in tensors(rows, 4, 2)]
    out = packed_attention(*leaves, rows, scale=SCALE, kernel="flash")
    expected = by_mask(*leaves, rows, None, None)
    assert torch.allclose(out, expected, rtol=0, atol=1e-13)
    assert len(flash) == len(segments) == 8
    grads = [torch.autograd.grad(t.square().sum(), leaves) for t in (out, expected)]
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(*grads))


@pytest.mark.parametrize("window", [None, 6])
def test_sdpa_reads_no_key_behind_a_segment(monkeypatch, window):
    queries, keys = row_sets(1)
    q_pos, k_pos = (torch.tensor(np.concatenate([np.flatnonzero(row) for row in part])) for part in (queries, keys))
    lens, segments = [part.sum(1).tolist() for part in (queries, keys)], segments_of(queries, keys)
    whole, runs = PackedRows(*lens, q_pos, k_pos), PackedRows(*lens, q_pos, k_pos, segments=segments)
    calls, attend = [], dispatch.sdpa.scaled_dot_product_attention
    counted = lambda q, k, v, **options: (calls.append((q.shape[2], k.shape[2])), attend(q, k, v, **options))[1]  # noqa: E731
    monkeypatch.setattr(dispatch.sdpa, "scaled_dot_product_attention", counted)
    qkv = tensors(whole, 4, 2)
    out = packed_attention(*qkv, runs, scale=SCALE, window=window, kernel="sdpa")
    assert calls == [(s.q1 - s.q0, s.k1 - s.k0) for s in segments] and len(calls) > 4
    assert torch.allclose(out, by_mask(*qkv, whole, window, None), rtol=0, atol=1e-13)
    calls.clear()
    monkeypatch.setattr(dispatch.sdpa, "FEW", 1)
    packed_attention(*qkv, runs, scale=SCALE, window=window, kernel="sdpa")
    assert calls == list(zip(*lens))


def counted(patch):
    """Queries and keys of each call of the kernel that runs a block."""
    calls, run = [], causal_blocks.FORWARD
    patch.setattr(
        causal_blocks,
        "FORWARD",
        lambda q, k, v, **more: (calls.append((q.shape[2], k.shape[2])), run(q, k, v, **more))[1],
    )
    return calls


@SETTINGS
@given(
    lens=st.lists(st.integers(0, 23), min_size=1, max_size=3),
    block=st.integers(1, 9),
    window=st.none() | st.integers(1, 25),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_causal_blocks_are_the_rule(lens, block, window, dtype, seed):
    """Also where the last block is short, and heads share keys."""
    rows = make_rows(lens, lens, True, False, seed)
    qkv = [t.to(dtype).requires_grad_() for t in tensors(rows, 4, 2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 1)
        patch.setattr(causal_blocks, "BLOCK", block)
        patch.setattr(causal_blocks, "LONGEST", 20)
        calls = counted(patch)
        out = packed_attention(*qkv, rows, scale=SCALE, window=window, kernel="sdpa")
    expected, atol = by_mask(*qkv, rows, window, None), 1e-12 if dtype == torch.float64 else 5e-6
    assert torch.allclose(out, expected, rtol=0, atol=atol)
    if any(lens):
        ours, truth = (torch.autograd.grad(t.square().sum(), qkv) for t in (out, expected))
        assert all(torch.allclose(a, b, rtol=0, atol=4 * atol) for a, b in zip(ours, truth))
    if window is None:
        cut = lambda n: [(min(block, n - i), min(i + block, n)) for i in range(0, n, block)]  # noqa: E731
        assert calls == ([call for n in lens for call in cut(n)] if block < max(lens) <= 20 else [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)], ids=["own keys", "shared keys"])
def test_causal_blocks_are_as_exact_as_the_reference(monkeypatch, dtype, heads):
    """Within twice the error that the reference has in the working type, plus rounding; gradients, too."""
    monkeypatch.setattr(causal_blocks, "BLOCK", 16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    rows = make_rows((70, 33), (70, 33), True, False, 0)
    leaves = tensors(rows, *heads, dtype)
    calls = counted(monkeypatch)

    def run(kernel, kind):
        own = [t.to(kind).requires_grad_() for t in leaves]
        out = packed_attention(*own, rows, scale=SCALE, kernel=kernel)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), own)]

    truth = run("reference", torch.float64)
    ours, plain = run("sdpa", dtype), run("reference", dtype)
    assert [queries for queries, _ in calls] == [16] * 4 + [6] + [16] * 2 + [1]
    for a, b, t in zip(ours, plain, truth):
        rounding = 4 * torch.finfo(dtype).eps * t.abs().max()
        assert a.dtype == dtype and (a - t).abs().max() <= 2 * (b - t).abs().max() + rounding


def test_many_segments_are_left_to_other_kernels(flash):
    keys = np.ones((1, 40), bool)
    queries = np.arange(40)[None] % 4 == 0
    segments = segments_of(queries, keys)
    assert len(segments) == 10 and segments[1] == (1, 2, 0, 5)
    rows = PackedRows([10], [40], torch.arange(0, 40, 4), torch.arange(40), segments=segments)
    with pytest.raises(ConfigError, match="other rows"):
        packed_attention(*tensors(rows, 2, 2), rows, scale=SCALE, kernel="flash")


@pytest.mark.parametrize("window", [None, 4])
def test_flash_on_the_same_rows_is_one_call(flash, window):
    k_pos = torch.cat([torch.arange(7), torch.arange(3)])
    rows = PackedRows([7, 0, 3], [7, 0, 3], k_pos, k_pos, same_rows=True, consecutive=True)
    q, k, v = tensors(rows, 4, 2)
    out = packed_attention(q, k, v, rows, scale=SCALE, window=window, kernel="flash")
    assert torch.allclose(out, by_mask(q, k, v, rows, window, None), rtol=0, atol=1e-13) and flash == [(7, 7)]


@pytest.mark.parametrize("release", [{"enable_gqa"}, set()])
def test_torch_varlen_in_its_releases(monkeypatch, release):
    """Grouped heads are repeated where the release does not take them; the causal window is always told."""
    from torch.nn.attention import varlen

    seen = {}

    def standin(q, k, v, cu_q, cu_k, max_q, max_k, **options):
        seen.update(options)
        scale, window = options["scale"], options["window_size"]
        assert q.shape[1] == k.shape[1] or options["enable_gqa"]
        return flash_standin.flash_attn_varlen_func(
            q, k, v, cu_q, cu_k, max_q, max_k, softmax_scale=scale, causal=True, window_size=window
        )

    monkeypatch.setattr(varlen, "varlen_attn", standin)
    monkeypatch.setattr(dispatch.flash, "torch_parameters", lambda: frozenset({"scale", "window_size"} | release))
    monkeypatch.setitem(choice.TABLE["attention"], "torch", lambda call: "")
    places = torch.tensor([0, 2, 3, 1, 5])
    rows = PackedRows([3, 2], [3, 2], places, places, same_rows=True)
    q, k, v = tensors(rows, 4, 2)
    out = packed_attention(q, k, v, rows, scale=SCALE, kernel="torch")
    assert torch.allclose(out, by_mask(q, k, v, rows, None, None), rtol=0, atol=1e-13)
    assert seen["window_size"] == (-1, 0) and ("enable_gqa" in seen) == bool(release)


@pytest.mark.parametrize("name", ["flash_attn", "flash_attn_interface"])
def test_flash_attn_is_called_by_its_own_names(monkeypatch, name):
    """The package is a stand-in module; flash-attn 3 may return the log-sum-exp beside the output."""
    module = types.ModuleType(name)

    def function(*args, **options):
        out = flash_standin.flash_attn_varlen_func(*args, **options)
        return (out, None) if name == "flash_attn_interface" else out

    module.flash_attn_varlen_func = function
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(choice, "installed", lambda package: package == name)
    monkeypatch.setattr(choice, "capability", lambda device: (9, 0))
    monkeypatch.setitem(choice.TABLE["attention"], "flash", lambda call: "")
    pos = torch.arange(6)
    rows = PackedRows([6], [6], pos, pos, same_rows=True, consecutive=True)
    q, k, v = tensors(rows, 2, 1)
    out = packed_attention(q, k, v, rows, scale=SCALE, window=3, kernel="flash")
    assert torch.allclose(out, by_mask(q, k, v, rows, 3, None), rtol=0, atol=1e-13)


@pytest.mark.parametrize("kernel", ["triton", "flex", "reference"])
def test_soft_cap(device, kernel):
    rows = make_rows((9, 4), (20, 11), False, True, 3)
    q, k, v = (t.to(device) for t in tensors(rows, 4, 2, torch.float32))
    rows = PackedRows(rows.lens_q, rows.lens_k, *(t.to(device) for t in (rows.q_pos, rows.k_pos, rows.key_ok)))
    scale = 3 * SCALE  # logits on both sides of the cap's bend

    def run(kernel, *leaves):
        leaves = [t.requires_grad_(kernel != "flex") for t in leaves]
        out = packed_attention(*leaves, rows, scale=scale, softcap=2.0, kernel=kernel)
        return [out.detach()] + ([] if kernel == "flex" else [*torch.autograd.grad(out.square().sum(), leaves)])

    truth = run("reference", *(t.double() for t in (q, k, v)))
    ours, plain = run(kernel, *(t.clone() for t in (q, k, v))), run("reference", q, k, v)
    for a, b, t in zip(ours, plain, truth):
        assert (a - t).abs().max() <= 2 * (b - t).abs().max() + 8 * torch.finfo(torch.float32).eps * t.abs().max()
    assert (
        truth[0] - by_mask(*(t.double().cpu() for t in (q, k, v)), cpu(rows), None, None).to(device)
    ).abs().max() > 0.01


def cpu(rows):
    return PackedRows(rows.lens_q, rows.lens_k, *(t.cpu() for t in (rows.q_pos, rows.k_pos, rows.key_ok)))


@pytest.mark.parametrize("kernel", ["triton", "sdpa", "reference"])
@pytest.mark.parametrize("grad", [False, True])
def test_padded_keys_are_a_cache(device, kernel, grad):
    """Keys as a KV cache holds them, with free slots between: the same as the packed ones."""
    generator = torch.Generator().manual_seed(1)
    k_pos = torch.stack([torch.randperm(30, generator=generator)[:12].sort().values for _ in range(2)])
    ok = torch.rand(2, 12, generator=generator) > 0.3
    q_pos = torch.tensor([5, 9, 29, 8, 20])
    cache = [torch.randn(2, 2, 16, D, generator=generator) for _ in "kv"]
    padded = [t.to(device)[:, :, :12].transpose(1, 2) for t in cache]
    q = torch.randn(5, 4, D, generator=generator).to(device).requires_grad_(grad)
    unsorted = torch.where(ok, k_pos, torch.randint(0, 99, k_pos.shape, generator=generator))
    rows = PackedRows([3, 2], [12, 12], q_pos.to(device), unsorted.to(device), ok.to(device))
    out = packed_attention(q, *padded, rows, scale=SCALE, kernel=kernel)
    kept = [t.cpu()[ok].double() for t in padded]
    packed = PackedRows([3, 2], ok.sum(1).tolist(), q_pos, k_pos[ok])
    expected = by_mask(q.detach().cpu().double(), *kept, packed, None, None)
    assert (out.detach().cpu() - expected).abs().max() < 1e-5
    if grad:
        assert torch.autograd.grad(out.sum(), q)[0].shape == q.shape


@pytest.mark.parametrize("kernel", ["triton", "sdpa", "reference"])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_decode(device, kernel, softcap):
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(3, h, n, D, generator=generator) for h, n in ((4, 1), (2, 20), (2, 20)))
    length, ok = torch.tensor([20, 7, 0]), torch.rand(3, 20, generator=generator) > 0.3
    k_pos = torch.randperm(60, generator=generator)[:20].sort().values.expand(3, -1)
    q_pos = torch.tensor([59, 40, 30])
    inputs = {"length": length, "key_ok": ok, "window": (35, k_pos, q_pos)}
    options = {n: tuple(e.to(device) if torch.is_tensor(e) else e for e in t) if n == "window" else t.to(device)
               for n, t in inputs.items()}  # fmt: skip
    if kernel == "sdpa" and softcap:
        with pytest.raises(ConfigError, match="sdpa has no soft cap"):
            decode_attention(q[:, :, 0], k, v, scale=SCALE, softcap=softcap, kernel=kernel, **options)
        return
    tensors_there = [t.to(device) for t in (q[:, :, 0], k, v)]
    out = decode_attention(*tensors_there, scale=SCALE, softcap=softcap, kernel=kernel, **options)
    seen = ok & (torch.arange(20) < length[:, None]) & (k_pos > q_pos[:, None] - 35)
    logits = q.double() @ k.double().repeat_interleave(2, 1).transpose(-1, -2) * SCALE
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    weights = logits.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1).nan_to_num(0.0)
    expected = (weights @ v.double().repeat_interleave(2, 1))[:, :, 0]
    assert (out.cpu() - expected).abs().max() < 1e-5 and not expected[2].any()
