"""Installed as ``vtskip.data``."""

if __name__ != "vtskip.data":
    raise ImportError("import vtskip.data, not data: this folder is part of the vtskip package")
