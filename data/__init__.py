"""Installed as ``vtskip.data``: annotation formats, video reading, the synthetic data set, batches.

``build(DataConfig(...))`` returns samples; ``collate.StreamCollator`` makes batches of them.
"""

if __name__ != "vtskip.data":
    raise ImportError("import vtskip.data, not data: this folder is part of the vtskip package")

from vtskip.data.config import DataConfig, build, iterate
from vtskip.data.types import Sample

__all__ = ["DataConfig", "Sample", "build", "iterate"]
