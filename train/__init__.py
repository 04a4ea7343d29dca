"""Installed as ``vtskip.train``."""

if __name__ != "vtskip.train":
    raise ImportError("import vtskip.train, not train: this folder is part of the vtskip package")
