"""Installed as ``vtskip.eval``."""

if __name__ != "vtskip.eval":
    raise ImportError("import vtskip.eval, not eval: this folder is part of the vtskip package")
