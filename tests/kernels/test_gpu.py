"""The kernels on a real device: every back end that runs there, in its own types, against the fp32 reference."""

import pytest
import torch

import vtskip
from tests.kernels.test_dispatch import row_sets
from tests.tiny import FAMILIES
from vtskip.kernels import choice, reference
from vtskip.kernels.dispatch import PackedRows, decode_attention, gather_norm, packed_attention, scatter_update
from vtskip.kernels.packing import segments_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
D = 64


def within(ours, plain, truth):
    """Twice the error of the reference in the working type, which rounds what it computes in fp32."""
    dtype = plain.dtype
    rounding = 4 * torch.finfo(dtype).eps * truth.abs().max().clamp(min=1)
    assert (ours - truth).abs().max() <= 2 * (plain - truth).abs().max() + rounding


def gradients(attend, tensors, cotangent):
    leaves = [t.clone().requires_grad_() for t in tensors]
    out = attend(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, cotangent.to(out.dtype))]


def compare(rows, kernel, dtype, window=None, softcap=None, heads=(8, 2)):
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = (
        (rows.cu_q[-1], heads[0]),
        (rows.cu_k[-1], heads[1]),
        (rows.cu_k[-1], heads[1]),
        (rows.cu_q[-1], heads[0]),
    )
    *qkv, cotangent = (torch.randn(n, h, D, device="cuda", generator=generator).to(dtype) for n, h in shapes)

    def ours(q, k, v):
        return packed_attention(q, k, v, rows, scale=D**-0.5, window=window, softcap=softcap, kernel=kernel)

    def plain(q, k, v):
        return reference.gathered_attention(q, k, v, *rows.ranges(window), D**-0.5, rows.key_ok, softcap)

    truth = gradients(plain, [t.double() for t in qkv], cotangent)
    for a, b, t in zip(gradients(ours, qkv, cotangent), gradients(plain, qkv, cotangent), truth):
        within(a, b, t)


def asked(kernel, call):
    reason = choice.TABLE["attention"][kernel](call)
    if reason:
        pytest.skip(f"{kernel} {reason}")


def half(dtype, **options):
    return choice.Call(torch.device("cuda"), dtype, head_dim=D, **options)


@HALF
@pytest.mark.parametrize("kernel", ["flash", "torch", "triton", "sdpa", "flex"])
@pytest.mark.parametrize("window", [None, 100])
def test_the_same_rows(kernel, dtype, window):
    asked(kernel, half(dtype))
    lens = (300, 17, 513)
    pos = torch.cat([torch.arange(n) for n in lens]).cuda()
    compare(PackedRows(lens, lens, pos, pos, same_rows=True, consecutive=True), kernel, dtype, window)


@HALF
@pytest.mark.parametrize("kernel", ["flash", "torch"])
def test_segments_end_at_the_bottom_right(kernel, dtype):
    """What no stand-in can show: that the kernel's diagonal for fewer queries than keys is where we take it to be."""
    asked(kernel, half(dtype))
    queries, keys = row_sets(0)
    queries, keys = queries[2:], keys[2:]
    queries[:, 4:15] = False
    segments = segments_of(queries, keys)
    q_pos, k_pos = (torch.from_numpy(rows[0].nonzero()[0]).cuda() for rows in (queries, keys))
    compare(PackedRows([len(q_pos)], [len(k_pos)], q_pos, k_pos, segments=segments), kernel, dtype)


@HALF
@pytest.mark.parametrize("softcap", [None, 20.0])
@pytest.mark.parametrize("window", [None, 70])
def test_any_rows_in_triton(dtype, window, softcap):
    generator = torch.Generator().manual_seed(0)
    lens_q, lens_k = (130, 1, 40), (400, 90, 40)
    q_pos, k_pos = (
        torch.cat([torch.randperm(600, generator=generator)[:n].sort().values for n in lens]).cuda()
        for lens in (lens_q, lens_k)
    )
    key_ok = (torch.rand(len(k_pos), generator=generator) > 0.2).cuda()
    compare(PackedRows(lens_q, lens_k, q_pos, k_pos, key_ok), "triton", dtype, window, softcap)


@HALF
@pytest.mark.parametrize("kernel", ["triton", "sdpa"])
def test_decode(dtype, kernel):
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v = (
        torch.randn(3, h, n, D, device="cuda", generator=generator).to(dtype) for h, n in ((8, 1), (2, 5000), (2, 5000))
    )
    ok = torch.rand(3, 5000, device="cuda", generator=generator) > 0.3
    options = {"scale": D**-0.5, "key_ok": ok}
    truth = decode_attention(*(t.double() for t in (q[:, :, 0], k, v)), **options, kernel="reference")
    plain, ours = (decode_attention(q[:, :, 0], k, v, **options, kernel=name) for name in ("reference", kernel))
    within(ours, plain, truth)


@HALF
def test_rows(dtype):
    x, weight = torch.randn(500, 896, device="cuda").to(dtype), torch.randn(896, device="cuda").to(dtype)
    index = torch.arange(3, 500, 4, device="cuda")
    for a, b, t in zip(
        gather_norm(x, index, weight, 1e-6, kernel="triton"),
        gather_norm(x, index, weight, 1e-6, kernel="torch"),
        reference.gather_norm(x.double(), index, weight.double(), 1e-6),
    ):
        within(a, b, t)
    rows, gain = torch.randn(len(index), 896, device="cuda"), torch.rand(len(index), device="cuda")
    ours, plain = (scatter_update(x, index, rows, gain, "blend", kernel=name) for name in ("triton", "torch"))
    within(ours, plain, reference.scatter_update(x.double(), index, rows.double(), gain.double(), "blend"))


@pytest.mark.parametrize(
    "spec", [{"name": "mod", "keep": 0.4}, {"name": "shortv", "layers": [1, 2]}], ids=["mod", "shortv"]
)
def test_a_model_by_the_kernels_chosen_there(spec, monkeypatch):
    monkeypatch.delenv(choice.VARIABLE, raising=False)
    family = FAMILIES["llava-llama"]
    model = family.model(torch.float32).cuda()
    batch = {n: t.cuda() for n, t in family.batch(["long", "short"], dtype=torch.float32).items()}
    valid = batch["attention_mask"].bool()
    with torch.no_grad(), vtskip.attach(model, spec):
        ours = model(**batch).logits[valid]
        with choice.use("sdpa,rows=torch,topk=torch"):
            expected = model(**batch).logits[valid]
    assert (ours - expected).abs().max() <= 1e-4
