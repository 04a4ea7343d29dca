"""The choice of kernels: the table, what is asked for, and the reasons."""

import itertools

import pytest
import torch

from vtskip.errors import ConfigError
from vtskip.kernels import choice
from vtskip.kernels.choice import Call, choose, explain

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU, Triton and whatever else ``there`` is told: nothing runs, only the table is asked."""

    def there(*packages: str, capability: tuple[int, int] = (9, 0)) -> None:
        monkeypatch.setattr(choice, "installed", lambda module: module in ("triton", *packages))
        monkeypatch.setattr(choice, "capability", lambda device: capability)

    monkeypatch.setattr(choice, "interpreting", lambda: False)
    monkeypatch.delenv(choice.VARIABLE, raising=False)
    there()
    return there


def half(**options):
    return Call(CUDA, torch.bfloat16, **options)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (half(), "flash"),
        (half(softcap=True), "flash"),
        (half(order=False), "triton"),
        (half(masked=True), "triton"),
        (half(padded=True), "triton"),
        (half(window=True), "flash"),
        (half(window=True, consecutive=False), "triton"),
        (half(head_dim=72), "flash"),
        (half(head_dim=20), "triton"),
        (half(head_dim=512), "sdpa"),
        (half(head_dim=512, softcap=True), "reference"),
        (Call(CUDA, torch.float32), "triton"),
        (Call(CUDA, torch.float64), "sdpa"),
    ],
)
def test_attention_on_a_gpu_with_flash(gpu, call, expected):
    gpu("flash_attn")
    assert choose("attention", call) == expected


def test_attention_on_a_gpu_without_flash(gpu):
    assert choose("attention", half()) == "torch"
    assert choose("attention", half(softcap=True)) == "triton"
    gpu(capability=(7, 5))
    assert choose("attention", half()) == "triton"


def test_flash_attn_3_needs_a_newer_device_than_2(gpu):
    gpu("flash_attn_interface", capability=(8, 0))
    assert choose("attention", half()) == "torch"
    gpu("flash_attn_interface")
    assert choose("attention", half()) == "flash"


def test_other_operations(gpu, monkeypatch):
    for operation in ("decode", "rows", "topk"):
        assert choose(operation, half()) == "triton"
        assert choose(operation, Call(CPU, torch.float32)) in ("sdpa", "torch")
    monkeypatch.setattr(choice, "installed", lambda module: False)
    assert [choose(name, half()) for name in ("decode", "rows", "topk")] == ["sdpa", "torch", "torch"]


def test_every_call_has_a_kernel(gpu):
    for device, dtype, *flags in itertools.product(
        (CPU, CUDA), (torch.float16, torch.float32, torch.float64), *[(False, True)] * 4
    ):
        call = Call(device, dtype, **dict(zip(("order", "window", "softcap", "masked"), flags)))
        for operation in choice.TABLE:
            used, reasons = explain(operation, call)
            assert {used, *reasons} == set(choice.TABLE[operation]) and all(reasons.values())


@pytest.mark.parametrize(
    ("call", "kernel", "reason"),
    [
        (half(order=False), "flash", "knows no positions"),
        (half(softcap=True), "torch", "has no soft cap"),
        (Call(CPU, torch.float32), "flash", "needs a CUDA device"),
        (Call(CPU, torch.float32), "triton", r"needs a CUDA device \(or TRITON_INTERPRET=1\)"),
        (Call(CUDA, torch.float64), "triton", "cannot compute in float64"),
        (Call(CPU, torch.float32, grad=True), "flex", "runs forward only on a CPU"),
    ],
)
@pytest.mark.parametrize("how", ["argument", "variable", "use"])
def test_a_kernel_asked_for_runs_or_raises(gpu, monkeypatch, call, kernel, reason, how):
    gpu("flash_attn")
    if how == "variable":
        monkeypatch.setenv(choice.VARIABLE, f"attention={kernel}")
    with pytest.raises(ConfigError, match=f"{kernel} was asked for attention, but .*{reason}"):
        if how == "use":
            with choice.use(kernel):
                choose("attention", call)
        else:
            choose("attention", call, kernel if how == "argument" else None)


def test_the_argument_comes_before_use_and_that_before_the_variable(gpu, monkeypatch):
    monkeypatch.setenv(choice.VARIABLE, "reference")
    call = Call(CPU, torch.float32)
    assert choose("attention", call) == "reference"
    with choice.use("attention=sdpa"):
        assert choose("attention", call) == "sdpa"
        assert choose("attention", call, "flex") == "flex"
        assert choose("rows", call) == "torch"
    assert choose("rows", call) == "reference"


def test_a_bare_name_is_for_all_operations_that_have_it():
    asked = dict(choice.parse("triton, attention=sdpa"))
    assert asked == {"attention": "sdpa", "decode": "triton", "rows": "triton", "topk": "triton"}
    assert dict(choice.parse("flash")) == {"attention": "flash"} and not choice.parse("")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tritn", "no kernel 'tritn'; known: .*did you mean 'triton'"),
        ("atention=triton", "no operation 'atention'.*did you mean 'attention'"),
        ("rows=flash", "no kernel 'flash' for rows; known: triton, torch, reference"),
    ],
)
def test_unknown_names(text, message):
    with pytest.raises(ConfigError, match=message), choice.use(text):
        pass
