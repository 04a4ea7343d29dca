"""``vtskip env``: what this machine has."""

from typing import Annotated, Any

import typer

REQUIRED = (
    "transformers", "accelerate", "safetensors", "einops", "pydantic", "open_clip_torch", "torchvision", "timm", "decord",
    "av", "sacrebleu", "numpy",
)  # fmt: skip
OPTIONAL = ("deepspeed", "peft", "flash-attn", "triton")


def command(
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON list, and nothing else")] = False,
) -> None:
    """Show Python, torch and its devices, packages, the attention back ends that work here, and which kernels run."""
    import os
    import platform

    import torch

    from vtskip import __version__
    from vtskip.cli.listing import show

    build = (
        f"CUDA {torch.version.cuda}"
        if torch.version.cuda
        else f"HIP {torch.version.hip}"
        if torch.version.hip
        else "CPU"
    )
    rows = [
        _row("vtskip", "package", __version__),
        _row("python", "system", platform.python_version(), platform.python_implementation()),
        _row("platform", "system", platform.platform()),
        _row("cpu", "device", str(os.cpu_count()), f"torch uses {torch.get_num_threads()} thread(s)"),
        *devices(),
        _row("torch", "package", torch.__version__, f"built for {build}"),
        *(_package(name, "package") for name in REQUIRED),
        *(_package(name, "optional package") for name in OPTIONAL),
        *attention(),
        *kernels(),
    ]
    columns = {"name": "name", "kind": "kind", "version": "version", "usable": "usable", "note": "note"}
    show(rows, columns, as_json, "environment")


def _row(name: str, kind: str, version: str, note: str = "", usable: bool = True) -> dict[str, Any]:
    return {"name": name, "kind": kind, "version": version, "usable": usable, "note": note}


def _package(name: str, kind: str) -> dict[str, Any]:
    version = installed(name)
    return _row(name, kind, version or "missing", usable=version is not None)


def installed(name: str) -> str | None:
    """The version of an installed distribution, without importing it; None if it is missing."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def devices() -> list[dict[str, Any]]:
    """One row per accelerator that torch sees, or one that says there is none."""
    import torch

    rows = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"{properties.major}.{properties.minor}"
        note = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        rows.append(_row(f"cuda:{index}", "device", f"compute {capability}", note))
    if torch.backends.mps.is_available():
        rows.append(_row("mps", "device", "", "not tested with vtskip"))
    return rows or [_row("accelerator", "device", "missing", "torch sees none", usable=False)]


def attention() -> list[dict[str, Any]]:
    """The attention implementations a model may be loaded with, and whether they run here."""
    import torch

    flash, gpu = installed("flash-attn"), torch.cuda.is_available()
    lacking = [what for what, there in (("the flash-attn package", flash), ("a CUDA device", gpu)) if not there]
    note = f"needs {' and '.join(lacking)}" if lacking else "fp16 and bf16 only"
    return [
        _row("eager", "attention", torch.__version__),
        _row("sdpa", "attention", torch.__version__, "default"),
        _row("flash_attention_2", "attention", flash or "missing", note, usable=not lacking),
    ]


def kernels() -> list[dict[str, Any]]:
    """Per operation on gathered rows the kernel that runs here in the models' usual type, and why no other one does."""
    import torch

    from vtskip.errors import ConfigError
    from vtskip.kernels.choice import VARIABLE, Call, explain, requested

    gpu = torch.cuda.is_available()
    device, dtype = (torch.device("cuda", 0), torch.bfloat16) if gpu else (torch.device("cpu"), torch.float32)
    rows = []
    for name, operation, order in (
        ("attention", "attention", True),
        ("attention of other rows", "attention", False),
        ("decode", "decode", True),
        ("rows", "rows", True),
        ("topk", "topk", True),
    ):
        try:
            asked = f"{VARIABLE} asks for it; " if operation in requested() else ""
            used, others = explain(operation, Call(device, dtype, head_dim=128, order=order, grad=True))
            note = asked + "; ".join(f"{other}: {reason}" for other, reason in others.items())
            rows.append(_row(name, "kernel", used, note))
        except ConfigError as error:
            rows.append(_row(name, "kernel", "none", str(error), usable=False))
    return rows
