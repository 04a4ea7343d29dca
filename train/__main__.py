"""``python -m vtskip.train CONFIG [key=value ...]``: the same program as ``vtskip train``, for launchers."""

import sys
from importlib import import_module

if __name__ == "__main__":
    # DeepSpeed's launcher adds --local_rank=N, which its environment says too. The command line stands above training, which
    # must not import it: hence by name.
    arguments = [a for a in sys.argv[1:] if not a.startswith(("--local_rank", "--local-rank"))]
    sys.exit(import_module("vtskip.cli.main").main(["train", *arguments]))
