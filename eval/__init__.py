"""Installed as ``vtskip.eval``."""

if __name__ != "vtskip.eval":
    raise ImportError("import vtskip.eval, not eval: this folder is part of the vtskip package")


def __getattr__(name: str):
    if name in ("run", "EvalConfig"):  # on first use: the metrics alone need neither models nor data
        from importlib import import_module

        return getattr(import_module("vtskip.eval.runner" if name == "run" else "vtskip.eval.config"), name)
    raise AttributeError(f"module 'vtskip.eval' has no attribute {name!r}")
