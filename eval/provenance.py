"""Where a result comes from: command, code, machine, library versions, seed, date."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import vtskip

LIBRARIES = ("torch", "transformers", "open_clip_torch", "safetensors", "numpy", "decord", "av", "deepspeed", "triton")


def provenance(seed: int) -> dict[str, Any]:
    """JSON-ready facts; ``git`` is None where the package does not run from a checkout."""
    return {
        "command": command(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "git": git_state(Path(vtskip.__file__).resolve().parent.parent),
        "versions": versions(),
        "machine": machine(),
    }


def command() -> list[str]:
    """The command line, with the program's name instead of the path of one machine."""
    program = Path(sys.argv[0]).name
    return ["vtskip" if program == "__main__.py" else program, *sys.argv[1:]]


def git_state(root: Path) -> dict[str, Any] | None:
    """Commit of the checkout at ``root`` and whether it holds uncommitted changes; None outside a checkout."""
    if not (root / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(["git", "-C", root, *args], capture_output=True, text=True, timeout=10, check=True).stdout
            for args in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.strip(), "dirty": bool(changes.strip())}


def versions() -> dict[str, str]:
    """Versions of Python, vtskip and those of ``LIBRARIES`` that are installed."""
    found = {"python": platform.python_version(), "vtskip": vtskip.__version__}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Processor, cores, threads and the accelerator, if one is visible."""
    return {
        "system": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def processor() -> str:
    """Model name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
