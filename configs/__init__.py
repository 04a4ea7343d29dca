"""Installed as ``vtskip.configs``."""

if __name__ != "vtskip.configs":
    raise ImportError("import vtskip.configs, not configs: this folder is part of the vtskip package")
