"""Which kernel runs an operation: one table per operation, in the order of preference, and the reasons against each.

A kernel that ``VTSKIP_KERNELS``, :func:`use` or an argument asks for runs or raises; nothing is ever put in its place.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from vtskip.errors import ConfigError, nearest

VARIABLE = "VTSKIP_KERNELS"
HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Call:
    """What an operation is asked to do, as far as a kernel may be unable to do it.

    Attributes:
        order: packed order says who sees whom: the same rows as queries and keys, or few segments of them.
        window: it binds, ``consecutive``: and counting rows is counting positions.
    """

    device: torch.device
    dtype: torch.dtype
    head_dim: int = 64
    order: bool = True
    window: bool = False
    consecutive: bool = True
    softcap: bool = False
    masked: bool = False
    padded: bool = False
    grad: bool = False


Reason = Callable[[Call], str]


@functools.cache
def installed(module: str) -> bool:
    """Whether a module can be found, without importing it."""
    return importlib.util.find_spec(module) is not None


@functools.cache
def capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def interpreting() -> bool:
    """Whether Triton kernels run in its interpreter (``TRITON_INTERPRET=1`` when it was first imported)."""
    from triton.runtime.interpreter import InterpretedFunction

    from vtskip.kernels import triton_rows

    return isinstance(triton_rows._gather_norm, InterpretedFunction)


def _nothing(call: Call) -> str:
    return ""


def _triton(call: Call) -> str:
    if not installed("triton"):
        return "the triton package is missing"
    if call.device.type != "cuda" and not interpreting():
        return "needs a CUDA device (or TRITON_INTERPRET=1)"
    if call.device.type == "cuda" and interpreting():
        return "TRITON_INTERPRET=1 is set"
    if call.dtype not in (torch.float32, *HALF):
        return f"cannot compute in {_name(call.dtype)}"
    return "" if call.head_dim <= 256 else f"head dimension {call.head_dim} is above 256"


def _by_order(call: Call, architecture: int) -> str:
    """What all flash attention kernels ask for."""
    if call.device.type != "cuda":
        return "needs a CUDA device"
    if capability(call.device)[0] < architecture:
        return f"needs compute capability {architecture}.0"
    if call.dtype not in HALF:
        return f"takes fp16 and bf16, not {_name(call.dtype)}"
    if call.head_dim > 256 or call.head_dim % 8:
        return f"head dimension {call.head_dim} is above 256 or no multiple of 8"
    if not call.order:
        return "knows no positions, and queries and keys are different rows"
    if call.masked or call.padded:
        return "takes packed keys without a mask"
    return "" if call.consecutive or not call.window else "counts a window in rows, and rows are left out"


def _flash(call: Call) -> str:
    if installed("flash_attn"):
        return _by_order(call, 8)
    if not installed("flash_attn_interface"):
        return "neither flash-attn 2 nor 3 is installed"
    return _by_order(call, 9)


def _varlen(call: Call) -> str:
    from vtskip.kernels.flash import torch_varlen_lacks

    lacking = torch_varlen_lacks()
    if lacking:
        return lacking
    return "has no soft cap" if call.softcap else _by_order(call, 8)


def _flex(call: Call) -> str:
    if call.device.type == "cuda":
        return ""
    return "runs forward only on a CPU" if call.grad else ""


def _sdpa(call: Call) -> str:
    return "has no soft cap" if call.softcap else ""


TABLE: dict[str, dict[str, Reason]] = {
    "attention": {
        "flash": _flash,
        "torch": _varlen,
        "triton": _triton,
        "sdpa": _sdpa,
        "flex": _flex,
        "reference": _nothing,
    },
    "decode": {"triton": _triton, "sdpa": _sdpa, "reference": _nothing},
    "rows": {"triton": _triton, "torch": _nothing, "reference": _nothing},
    "topk": {"triton": _triton, "torch": _nothing},
}
_ON_CPU = {"attention": ("sdpa", "reference"), "decode": ("sdpa", "reference"), "rows": ("torch",), "topk": ("torch",)}
_ON_CUDA = {
    "attention": ("flash", "torch", "triton", "sdpa", "reference"),
    "decode": ("triton", "sdpa", "reference"),
    "rows": ("triton", "torch"),
    "topk": ("triton", "torch"),
}


def order_of(operation: str, device: torch.device) -> tuple[str, ...]:
    """Kernels in the order in which they are tried where nothing is asked for; the others run on request alone."""
    return (_ON_CUDA if device.type == "cuda" else _ON_CPU)[operation]


def choose(operation: str, call: Call, kernel: str | None = None) -> str:
    """The kernel for a call: the one asked for, or the first of :func:`order_of` that can do it.

    Raises:
        ConfigError: the kernel asked for is not known or cannot run this call.
    """
    asked, by = (kernel, "kernel=") if kernel else (requested().get(operation), VARIABLE)
    if asked:
        _known(operation, asked)
        reason = TABLE[operation][asked](call)
        if reason:
            raise ConfigError(f"{by}{asked} was asked for {operation}, but {asked} {_sentence(reason)}")
        return asked
    return next(name for name in order_of(operation, call.device) if not TABLE[operation][name](call))


def explain(operation: str, call: Call) -> tuple[str, dict[str, str]]:
    """The kernel for a call, and for every other one why not."""
    used, asked, order = choose(operation, call), requested().get(operation), order_of(operation, call.device)
    reasons = {}
    for name, reason in TABLE[operation].items():
        if name != used:
            other = f"{asked} is asked for" if asked else f"comes after {used}" if name in order else "on request"
            reasons[name] = reason(call) or other
    return used, reasons


def _known(operation: str, kernel: str) -> None:
    if operation not in TABLE:
        raise ConfigError(f"no operation {operation!r}; known: {', '.join(TABLE)}{nearest(operation, [*TABLE])}")
    if kernel not in TABLE[operation]:
        known = TABLE[operation]
        raise ConfigError(f"no kernel {kernel!r} for {operation}; known: {', '.join(known)}{nearest(kernel, [*known])}")


_asked: str | None = None


def requested() -> dict[str, str]:
    """Operation to kernel, of :func:`use` or else of the environment."""
    return dict(parse(os.environ.get(VARIABLE, "") if _asked is None else _asked))


@functools.cache
def parse(text: str) -> tuple[tuple[str, str], ...]:
    """``triton`` (every operation that has it), ``attention=triton,rows=torch``, or both, the later ones winning.

    Raises:
        ConfigError: an operation or a kernel that does not exist.
    """
    found: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        operation, sign, kernel = (p.strip() for p in part.partition("="))
        if sign:
            _known(operation, kernel)
            found[operation] = kernel
            continue
        having = [name for name, kernels in TABLE.items() if operation in kernels]
        if not having:
            every = sorted({name for kernels in TABLE.values() for name in kernels})
            raise ConfigError(
                f"{VARIABLE}: no kernel {operation!r}; known: {', '.join(every)}{nearest(operation, every)}"
            )
        found |= dict.fromkeys(having, operation)
    return tuple(found.items())


@contextmanager
def use(kernels: str) -> Iterator[None]:
    """Within it ``kernels`` stands in the place of ``VTSKIP_KERNELS``, for all threads of the process."""
    global _asked
    parse(kernels)
    before, _asked = _asked, kernels
    try:
        yield
    finally:
        _asked = before


def _sentence(reason: str) -> str:
    verbs = ("needs", "takes", "has", "knows", "counts", "runs", "cannot")
    return reason if reason.startswith(verbs) else f"does not run here: {reason}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
