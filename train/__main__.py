"""``python -m vtskip.train CONFIG [key=value ...]``: the same program as ``vtskip train``."""

import sys
from importlib import import_module

if __name__ == "__main__":
    # By name: the command line stands above training, which must not import it.
    sys.exit(import_module("vtskip.cli.main").main(["train", *sys.argv[1:]]))
