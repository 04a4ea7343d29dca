"""Installed as ``vtskip.train``: fine-tune a stock or a streaming model, with or without a method attached.

``run(load_config(TrainConfig, path))`` is what ``vtskip train`` and ``python -m vtskip.train`` do.
"""

if __name__ != "vtskip.train":
    raise ImportError("import vtskip.train, not train: this folder is part of the vtskip package")

from vtskip.train.config import TrainConfig
from vtskip.train.recipe import run

__all__ = ["TrainConfig", "run"]
