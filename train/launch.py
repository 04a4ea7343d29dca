"""A run in several processes of this machine."""

import os
import sys
from typing import NoReturn

from vtskip.errors import ConfigError


def relaunch(processes: int, arguments: list[str]) -> NoReturn:
    """Become torchrun with so many processes of ``python -m vtskip.train``. Raises ConfigError inside a launched process."""
    if "WORLD_SIZE" in os.environ:
        raise ConfigError(f"--nproc {processes}: this is one of {os.environ['WORLD_SIZE']} launched processes already")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    os.execv(sys.executable, [*command, "-m", "vtskip.train", *arguments])  # signals then reach it directly
