"""vtskip: vision tokens that skip layers, on stock Hugging Face models.

Importing this package is cheap: public names are resolved on first use (PEP 562).
"""

from importlib import import_module
from pathlib import Path

from vtskip import _torchvision

__version__ = "0.1.0"

# In a source checkout data/, train/, eval/ and configs/ lie beside this folder; an installed wheel holds them inside it.
_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "configs").is_dir():
    __path__.append(str(_root))

_torchvision.install_guard()

_PUBLIC = {
    "attach": "vtskip.runtime.attach",
    "Handle": "vtskip.runtime.attach",
    "SkipCache": "vtskip.runtime.cache",
    "LayerPlan": "vtskip.plan",
    "RowMap": "vtskip.plan",
    "Method": "vtskip.methods",
    "get_method": "vtskip.methods",
    "StreamingLlava": "vtskip.models.streaming_llava",
    "StreamingLlavaConfig": "vtskip.models.streaming_llava",
    "StreamSession": "vtskip.streaming.session",
    "save_pretrained": "vtskip.saving",
    "push_to_hub": "vtskip.saving",
    "load_pretrained": "vtskip.loading",
    "VtskipError": "vtskip.errors",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'vtskip' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
