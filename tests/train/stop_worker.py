"""One of two processes of a run; the second one is told to stop in the second step. Settings: ``config`` and ``report``."""

import json
import os
import signal
import sys
from pathlib import Path

from tests.train.runs import train
from vtskip.train import loop
from vtskip.train.faults import Interrupted

settings = json.loads(Path(sys.argv[1]).read_text())
rank, original = int(os.environ["RANK"]), loop.RunTrainer.training_step


def training_step(self, *args):
    if rank == 1 and self.state.global_step == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return original(self, *args)


loop.RunTrainer.training_step = training_step
try:
    told = train(settings["config"])["steps"]
except Interrupted as e:
    told = str(e)
Path(settings["report"], f"told{rank}.json").write_text(json.dumps(told))
