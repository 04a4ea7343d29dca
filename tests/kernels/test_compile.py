"""Every Triton kernel compiles for the GPUs of sm_80 and sm_90, in every type it is used with, without a GPU here."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import torch, triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from vtskip.kernels import triton_attention as attention, triton_rows as rows, triton_topk as topk

def build(kernel, types, constants, arch):
    constants = dict(constants)
    warps, signature = constants.pop("num_warps", 4), {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in types:
            signature[name] = types[name]
        elif name in ("scale", "cap", "eps", "offset"):
            signature[name] = "fp32"
        else:
            signature[name] = "i32"
    source = ASTSource(kernel, signature, constexprs={(kernel.arg_names.index(k),): v for k, v in constants.items()})
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps})
    assert compiled.asm["cubin"], kernel
    shared = compiled.metadata.shared
    assert shared <= {80: 163, 90: 227}[arch] * 1024, f"{kernel.__name__} {constants} asks for {shared} bytes of shared memory"
    print("compiled", kernel.__name__, arch)

arch, name, quick = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "quick"
kind = getattr(torch, name)
pointer = {"float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16"}[name]
compute = attention.compute_type(kind, interpreted=False)
wide = compute is tl.float32
index = {n: "*i32" for n in ("Lo", "Hi", "First", "Last")} | {"Ok": "*i1"}
data = {n: pointer for n in ("Q", "K", "V", "Out", "DOut", "DQ", "DK", "DV")} | {"Lse": "*fp32", "Delta": "*fp32"}
for d, ok in ((128, False), (64, True), (256, False))[: 1 if quick else 3]:
    shared = dict(GROUP=4, HAS_OK=ok, HAS_CAP=ok, COMPUTE=compute)
    build(attention._forward, data | index, shared | attention.blocks(d, 4096, wide) | {"SPLITS": 1}, arch)
    build(attention._forward, data | index | {"Out": "*fp32"}, shared | attention.blocks(d, 1, wide) | {"SPLITS": 8}, arch)
    for kernel in (attention._backward_q, attention._backward_kv):
        build(kernel, data | index, shared | attention.backward_blocks(d, wide), arch)
row = {n: pointer for n in ("X", "Weight", "Rows", "Normed", "DRows", "DNormed", "DX", "Base", "Gain", "Out", "DOut", "DBase",
                            "DGain")} | {"Index": "*i64", "Ok": "*i1", "Rstd": "*fp32", "DWeight": "*fp32"}
width = dict(D=3584, DP=4096)
build(rows._gather_norm, row, width, arch)
build(rows._gather_norm_backward, row, width | {"PER": 16}, arch)
for mode in (1,) if quick else (0, 1, 2):
    options = width | {"MODE": mode, "HAS_GAIN": mode > 0, "HAS_OK": mode == 1}
    build(rows._scatter_update, row, options, arch)
    build(rows._scatter_backward, row, options, arch)
tuples = {"Wide": (pointer, "*fp32"), "Narrow": (pointer, "*fp32"), "Periods": ("i32", "i32"), "Index": "*i64"}
for gather in (True,) if quick else (False, True):
    build(rows._move, tuples, dict(COUNT=2, WIDTHS=(3584, 1), PADS=(4096, 1), GATHER=gather), arch)
for score in (pointer,) if quick else (pointer, "*fp64"):
    build(topk._ranks, {"Score": score, "Group": "*i64", "Rank": "*i32"}, dict(BM=64, BN=128), arch)
"""


@pytest.mark.parametrize(
    ("arch", "dtype", "extent"),
    [
        (90, "bfloat16", "quick"),
        pytest.param(90, "bfloat16", "all", marks=pytest.mark.slow),
        *(pytest.param(arch, "float32", "all", marks=pytest.mark.slow) for arch in (80, 90)),
        *(pytest.param(arch, "float16", "all", marks=pytest.mark.slow) for arch in (80, 90)),
        pytest.param(80, "bfloat16", "all", marks=pytest.mark.slow),
    ],
)
def test_kernels_compile(arch, dtype, extent, tmp_path):
    pytest.importorskip("triton")
    import os

    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(arch), dtype, extent], env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("compiled") == (10 if extent == "quick" else 24)
