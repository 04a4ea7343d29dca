"""Lets torchvision import next to a torch built without the accelerator it was compiled for.

torchvision registers Python code for two operators that its compiled library defines. Where that library does not
load (a CPU torch beside a CUDA torchvision), ``import torchvision`` fails, and with it open_clip, timm and every
transformers model. Declaring the two schemas first is enough: nothing here calls the operators.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library: Any = None  # torch.library objects undo their definitions when collected


def _own_library_loads(spec: ModuleSpec | None) -> bool:
    """Whether torchvision's compiled library works here; loading it twice is harmless, and torchvision does it next."""
    import torch

    folders = (spec.submodule_search_locations if spec else None) or []
    for path in (p for folder in folders for p in sorted(Path(folder).glob("_C*")) if p.suffix in (".so", ".pyd")):
        try:
            torch.ops.load_library(str(path))
        except (OSError, ImportError):
            return False
    return hasattr(torch.ops.torchvision, "nms")


def declare_operators(spec: ModuleSpec | None) -> None:
    """Declare torchvision's two schemas if torch has no GPU support and torchvision's own library does not load."""
    global _library
    import torch

    if _library is not None or torch.version.cuda or getattr(torch.version, "hip", None) or _own_library_loads(spec):
        return
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        _library.define(name + _SCHEMA)


class _Guard(MetaPathFinder):
    """Runs ``declare_operators`` right before torchvision's first import, so that importing vtskip stays cheap."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torchvision" and self in sys.meta_path:
            sys.meta_path.remove(self)
            declare_operators(PathFinder.find_spec(fullname, path))
        return None


def install_guard() -> None:
    """Watch for torchvision's first import; does nothing if it has already been imported."""
    if "torchvision" not in sys.modules and not any(isinstance(f, _Guard) for f in sys.meta_path):
        sys.meta_path.insert(0, _Guard())
