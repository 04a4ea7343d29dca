"""Lets torchvision import next to a torch built without the accelerator it was compiled for.

torchvision registers Python code for two operators that its compiled library defines. Where that library does not
load (a CPU torch beside a CUDA torchvision), ``import torchvision`` fails, and with it open_clip, timm and every
transformers model. Declaring the two schemas first is enough: nothing here calls the operators.
"""

import sys
from importlib.abc import MetaPathFinder

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library = None  # torch.library objects undo their definitions when collected


def declare_operators() -> None:
    """Declare torchvision's two schemas when its own library cannot load; does nothing where torch has a GPU."""
    global _library
    import torch

    if _library is not None or torch.version.cuda or getattr(torch.version, "hip", None):
        return
    if hasattr(torch.ops.torchvision, "nms"):
        return
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        _library.define(name + _SCHEMA)


class _Guard(MetaPathFinder):
    """Runs ``declare_operators`` right before torchvision's first import, so that importing vtskip stays cheap."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            declare_operators()
        return None


def install_guard() -> None:
    if "torchvision" not in sys.modules and not any(isinstance(f, _Guard) for f in sys.meta_path):
        sys.meta_path.insert(0, _Guard())
